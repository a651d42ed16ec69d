#include "device/cuda_kernels.hpp"
#include "device/transpose_tile.hpp"
#include "device/word_boxes.hpp"

namespace rankslice {

namespace {

constexpr unsigned kWarp = 32;

template <typename Element>
__global__ void __launch_bounds__(kTileThreads) transpose_kernel(TransposeTask<Element> task) {
  __shared__ TransposeTile<Element> shared;
  load_tile(task, blockIdx.x, threadIdx.x, shared);
  __syncthreads();
  store_tile(task, blockIdx.x, threadIdx.x, shared);
}

template <typename Word>
__global__ void __launch_bounds__(kPanelThreads) digest_kernel(WordBox<Word> box, unsigned long long* sums) {
  unsigned long long sum = weigh_panel(box, blockIdx.x, threadIdx.x);
  for (auto distance = kWarp / 2; distance > 0; distance /= 2) sum += __shfl_down_sync(~0U, sum, distance);
  __shared__ unsigned long long of_warps[kPanelThreads / kWarp];
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (unsigned warp = 1; warp < kPanelThreads / kWarp; ++warp) sum += of_warps[warp];
  atomicAdd(sums + blockIdx.x / panels_per_entry(box), sum);
}

template <typename Element>
void start_transpose(std::byte const* from, std::uint64_t rows, std::uint64_t columns, std::byte* to,
                     std::uint64_t to_stride, cudaStream_t stream) {
  TransposeTask<Element> const task{.from = reinterpret_cast<Element const*>(from),
                                    .to = reinterpret_cast<Element*>(to),
                                    .rows = rows,
                                    .columns = columns,
                                    .to_stride = to_stride};
  transpose_kernel<<<static_cast<unsigned>(tile_count(rows, columns)), kTileThreads, 0, stream>>>(task);
}

}  // namespace

cudaError_t launch_transpose(std::byte const* from, std::uint64_t rows, std::uint64_t columns,
                             std::uint64_t element_bytes, std::byte* to, std::uint64_t to_stride, cudaStream_t stream) {
  if (rows == 0 || columns == 0) return cudaSuccess;  // a grid has at least one block
  switch (element_bytes) {
    case 1:
      start_transpose<std::uint8_t>(from, rows, columns, to, to_stride, stream);
      break;
    case 2:
      start_transpose<std::uint16_t>(from, rows, columns, to, to_stride, stream);
      break;
    case 4:
      start_transpose<std::uint32_t>(from, rows, columns, to, to_stride, stream);
      break;
    case 8:
      start_transpose<std::uint64_t>(from, rows, columns, to, to_stride, stream);
      break;
    default:
      return cudaErrorInvalidValue;
  }
  return cudaGetLastError();
}

cudaError_t launch_digest(DigestBox const& box, std::uint64_t* sums, cudaStream_t stream) {
  static_assert(sizeof(unsigned long long) == sizeof(std::uint64_t));
  if (box.entries == 0 || box.lines == 0 || box.length == 0) return cudaSuccess;  // a grid has at least one block
  for_each_word_box(box, [&]<typename Word>(WordBox<Word> const& words) {
    auto const panels = static_cast<unsigned>(words.entries * panels_per_entry(words));
    digest_kernel<<<panels, kPanelThreads, 0, stream>>>(words, reinterpret_cast<unsigned long long*>(sums));
  });
  return cudaGetLastError();
}

}  // namespace rankslice

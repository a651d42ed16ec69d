#include <algorithm>
#include <cstring>
#include <vector>

#include "rankslice/error.hpp"

#include "cli/bench_steps.hpp"
#include "core/literals.hpp"
#include "transform/tensor_digest.hpp"
#include "transform/transpose.hpp"

namespace rankslice::cli {

namespace {

constexpr auto kBlockBytes = 512_KiB;    // what loading has in its hands at a time
constexpr std::uint64_t kLineRows = 64;  // of which it makes whole cache lines

/// Expert matrices in memory, row-major, one after the other.
struct Experts {
  std::span<std::byte const> memory;
  DType dtype = DType::BF16;
  std::uint64_t count = 0, rows = 0, columns = 0;

  [[nodiscard]] std::uint64_t element() const { return element_bytes(dtype); }
  [[nodiscard]] std::uint64_t row_bytes() const { return columns * element(); }
  [[nodiscard]] std::uint64_t matrix_bytes() const { return rows * row_bytes(); }
};

/// What this rank holds of the largest stacked tensor, taken as matrices that are to be transposed.
Experts largest_experts(StateDict const& held) {
  ShardedTensor const* largest = nullptr;
  std::uint64_t most = 0;
  for (auto const& [fqn, tensor] : held.tensors) {
    auto const bytes = byte_size(tensor.parameter.dtype, tensor.parameter.shape);
    if (!tensor.parameter.stacked_experts || tensor.local_shape.size() != 3 || bytes <= most) continue;
    most = bytes;
    largest = &tensor;
  }
  if (largest == nullptr) {
    throw PlanError("this checkpoint has no stacked experts: there is nothing to transpose or digest alone");
  }
  return {.memory = largest->data.span(),
          .dtype = largest->parameter.dtype,
          .count = largest->local_shape[0],
          .rows = largest->local_shape[2],
          .columns = largest->local_shape[1]};
}

/// In strips of rows, as loading does it: their columns go past the cache to where they belong.
void transpose_all(Experts const& experts, std::byte* out, Alive const& alive) {
  auto const strip =
      std::max(kLineRows, kBlockBytes / std::max<std::uint64_t>(experts.row_bytes(), 1) / kLineRows * kLineRows);
  for (std::uint64_t expert = 0; expert < experts.count; ++expert) {
    auto const* const from = experts.memory.data() + expert * experts.matrix_bytes();
    auto* const to = out + expert * experts.matrix_bytes();
    for (std::uint64_t row = 0; row < experts.rows; row += strip) {
      transpose({.data = from + row * experts.row_bytes(),
                 .rows = std::min(strip, experts.rows - row),
                 .columns = experts.columns,
                 .stride = experts.columns},
                experts.element(), to + row * experts.element(), experts.rows);
    }
    alive();
  }
}

template <typename Add>
void for_each_block(Experts const& experts, Alive const& alive, Add const& add) {
  for (std::uint64_t begin = 0; begin < experts.memory.size(); begin += kBlockBytes) {
    add(begin / experts.element(),
        experts.memory.subspan(begin, std::min<std::uint64_t>(kBlockBytes, experts.memory.size() - begin)));
    alive();
  }
}

}  // namespace

Step transpose_step(BenchSubject& subject) {
  auto const experts = largest_experts(subject.held);
  auto const bytes = experts.memory.size();
  auto const warm = allocate_huge_pages(bytes);
  std::ranges::fill(warm.span(), std::byte{1});
  auto const fresh = std::make_shared<Buffer>();
  auto const forget = [fresh] { *fresh = {}; };
  auto const transposed = [experts, &subject](Buffer const& to) {
    transpose_all(experts, to.data.get(), subject.alive);
  };
  auto const copied = [experts](Buffer const& to) {
    if (!experts.memory.empty()) std::memcpy(to.data.get(), experts.memory.data(), experts.memory.size());
  };
  auto const run = [&](std::string name, std::string meaning, std::function<void()> work) {
    return Run{.name = std::move(name),
               .meaning = std::move(meaning),
               .bytes = bytes,
               .work = std::move(work),
               .clean = forget};
  };
  return {.name = "transpose",
          .runs = {run("transpose, fresh memory",
                       "the held experts of the largest tensor, into memory that was never touched",
                       [=] { transposed(*fresh = allocate_huge_pages(bytes)); }),
                   run("transpose, warm memory", "… into memory that was written before", [=] { transposed(warm); }),
                   run("memcpy, fresh memory", "the same bytes copied as they are, into memory of the same kind",
                       [=] { copied(*fresh = allocate_huge_pages(bytes)); }),
                   run("memcpy, warm memory", "… into memory that was written before", [=] { copied(warm); })},
          .comparisons = {{0, 2}, {1, 3}},
          .takes_memory = 2};
}

Step digest_step(BenchSubject& subject) {
  auto const experts = largest_experts(subject.held);
  auto const digest =
      std::make_shared<TensorDigest>(experts.dtype, Shape{experts.count, experts.rows, experts.columns});
  auto const sums = std::make_shared<std::vector<std::uint64_t>>(experts.count);
  auto const run = [&](std::string name, std::string meaning, std::function<void()> work) {
    return Run{.name = std::move(name),
               .meaning = std::move(meaning),
               .bytes = experts.memory.size(),
               .work = std::move(work)};
  };
  return {.name = "digest",
          .runs = {run("digest, as stored", "the held experts of the largest tensor, axes as in the checkpoint",
                       [=, &subject] {
                         for_each_block(experts, subject.alive,
                                        [&](auto first, auto block) { digest->add(first, block, *sums); });
                       }),
                   run("digest, swapped", "the same bytes, axes 1 and 2 exchanged as in the native layout",
                       [=, &subject] {
                         for_each_block(experts, subject.alive,
                                        [&](auto first, auto block) { digest->add_swapped(first, block, *sums); });
                       }),
                   run("read memory", "the same bytes read once and added up", [=] { read_memory(experts.memory); })},
          .comparisons = {{0, 2}, {1, 2}}};
}

}  // namespace rankslice::cli

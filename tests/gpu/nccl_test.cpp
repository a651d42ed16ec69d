// The NCCL communicator on NCCL itself, under mpirun: a rank for each GPU, or two on one where NCCL allows it.

#include "rankslice/nccl.hpp"

#include <cuda_runtime.h>
#include <gtest/gtest.h>
#include <mpi.h>

#include <chrono>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "rankslice/cuda.hpp"
#include "rankslice/mpi.hpp"

#include "support/communicator_conformance.hpp"

namespace rankslice {
namespace {

constexpr int kMostRanksOfAGpu = 2;

/// Gives `use` the NCCL communicator of this job, or skips the test and says why.
void with_nccl(NcclOptions options, RankMain const& use) {
  auto const base = make_mpi_communicator(MPI_COMM_WORLD, {.timeout = std::chrono::seconds(60)});
  auto const gpus = visible_gpus();
  if (gpus.count > 0) options.device = device_of_rank(rank_on_host(*base), gpus.count);
  options.shared_gpus = gpus.count < base->size() && base->size() <= kMostRanksOfAGpu;
  if (options.shared_gpus) setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1", 1);
  if (auto const why = why_no_nccl(*base, options); !why.empty()) GTEST_SKIP() << "skipped: " << why;
  use(*make_nccl_communicator(*base, options));
}

Implementation over_nccl(std::string name, NcclOptions const& options) {
  return {.name = std::move(name), .run = [=](RankMain const& rank_main) { with_nccl(options, rank_main); }};
}

INSTANTIATE_TEST_SUITE_P(Nccl, CommunicatorConformance,
                         testing::Values(over_nccl("World", {}), over_nccl("SmallPieces", {.staging_bytes = 1 << 20})),
                         [](auto const& suite) { return suite.param.name; });

/// Bytes in memory of the current GPU.
class GpuBytes {
 public:
  explicit GpuBytes(std::vector<std::byte> const& bytes) : size_(bytes.size()) {
    EXPECT_EQ(cudaMalloc(&memory_, size_), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(memory_, bytes.data(), size_, cudaMemcpyDefault), cudaSuccess);
  }
  ~GpuBytes() { cudaFree(memory_); }
  GpuBytes(GpuBytes const&) = delete;
  GpuBytes& operator=(GpuBytes const&) = delete;

  [[nodiscard]] std::span<std::byte> span() const { return {static_cast<std::byte*>(memory_), size_}; }
  [[nodiscard]] std::vector<std::byte> copy() const {
    std::vector<std::byte> bytes(size_);
    EXPECT_EQ(cudaMemcpy(bytes.data(), memory_, size_, cudaMemcpyDefault), cudaSuccess);
    return bytes;
  }

 private:
  void* memory_ = nullptr;
  std::size_t size_;
};

TEST(Nccl, CarriesMemoryOfTheGpuAndOfTheHost) {
  with_nccl({}, [](Communicator& world) {
    cudaSetDevice(device_of_rank(rank_on_host(world), visible_gpus().count));
    constexpr std::size_t kBytes = 50'000'003;
    auto const mine = bytes_of_rank(world.rank(), kBytes);
    GpuBytes const shared(mine);
    world.broadcast(shared.span(), world.size() - 1);
    EXPECT_EQ(shared.copy(), bytes_of_rank(world.size() - 1, kBytes));

    if (world.size() == 1) return;
    auto const next = (world.rank() + 1) % world.size();
    auto const last = (world.rank() + world.size() - 1) % world.size();
    GpuBytes const sent(mine);
    std::vector<std::byte> received(kBytes);
    auto const send = world.start_send(sent.span(), next);
    world.start_receive(received, last)->wait();
    send->wait();
    EXPECT_EQ(received, bytes_of_rank(last, kBytes));
  });
}

}  // namespace
}  // namespace rankslice

#include "cli/gpu_ranks.hpp"

#include <fmt/format.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "rankslice/cuda.hpp"
#include "rankslice/error.hpp"
#include "rankslice/nccl.hpp"

namespace rankslice::cli {

namespace {

enum class Wish : std::uint64_t { not_nccl, nccl_if_it_serves, nccl };

Wish wish_of(Options const& options) {
  if (options.comm == "nccl") return Wish::nccl;
  bool const may_hold_on_gpus = options.command == "load" && options.device != "cpu" && !options.dry_run;
  return options.comm == "auto" && may_hold_on_gpus ? Wish::nccl_if_it_serves : Wish::not_nccl;
}

/// The environment stands behind options, so ranks may have been told different things.
Wish agree_on_wish(Options const& options, Communicator& base) {
  std::vector<std::uint64_t> least{static_cast<std::uint64_t>(wish_of(options))};
  auto most = least;
  base.all_reduce(least, Reduce::min);
  base.all_reduce(most, Reduce::max);
  auto const wish = static_cast<Wish>(least.front());
  if (least != most && static_cast<Wish>(most.front()) == Wish::nccl) {
    throw DeviceError("--comm nccl was given to some of the ranks only: give it to all, or use --comm mpi");
  }
  return wish;
}

}  // namespace

#ifdef RANKSLICE_WITH_NCCL

namespace {

/// Ranks share a GPU only where both we and NCCL were told so.
NcclOptions nccl_options(Communicator const& base, Wish wish) {
  auto const gpus = visible_gpus();
  auto const* const sharing = std::getenv("NCCL_MULTI_RANK_GPU_ENABLE");
  return {.device = gpus.count > 0 ? device_of_rank(rank_on_host(base), gpus.count) : 0,
          .shared_gpus = wish == Wish::nccl && sharing != nullptr && std::string(sharing) == "1"};
}

}  // namespace

std::string why_not_nccl(Communicator& base) { return why_no_nccl(base, nccl_options(base, Wish::nccl)); }

GpuRanks connect_gpus(Options const& options, Communicator& base) {
  auto const wish = agree_on_wish(options, base);
  if (wish == Wish::not_nccl || (wish == Wish::nccl_if_it_serves && base.size() == 1)) return {};
  auto const nccl = nccl_options(base, wish);
  auto why_not = why_no_nccl(base, nccl);
  if (!why_not.empty()) {
    if (wish == Wish::nccl) throw DeviceError("--comm nccl: " + why_not);
    return {.world = nullptr, .why_not = std::move(why_not)};
  }
  try {
    return {.world = make_nccl_communicator(base, nccl), .why_not = {}};
  } catch (DeviceError const& error) {
    if (wish == Wish::nccl) throw;
    return {.world = nullptr, .why_not = error.what(), .failed = true};
  }
}

#else

std::string why_not_nccl(Communicator&) {
  return "this program was built without NCCL: build it with `cmake --preset cuda`, which needs the CUDA toolkit and "
         "NCCL";
}

GpuRanks connect_gpus(Options const& options, Communicator& base) {
  if (agree_on_wish(options, base) != Wish::nccl) return {};
  throw DeviceError(fmt::format("--comm nccl: {}, or use --comm mpi", why_not_nccl(base)));
}

#endif

}  // namespace rankslice::cli

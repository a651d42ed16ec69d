#include "cli/device.hpp"

#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <vector>

namespace rankslice::cli {

#ifdef RANKSLICE_WITH_CUDA

namespace {

std::shared_ptr<Device> open(int index, std::chrono::milliseconds timeout) { return open_gpu(index, timeout); }

}  // namespace

VisibleGpus find_gpus() {
  auto gpus = visible_gpus();
  auto const* const chosen = std::getenv("CUDA_VISIBLE_DEVICES");
  if (gpus.count == 0 && chosen != nullptr) gpus.why_none += fmt::format(" (CUDA_VISIBLE_DEVICES={})", chosen);
  return gpus;
}

#else

namespace {

std::shared_ptr<Device> open(int, std::chrono::milliseconds) { return nullptr; }

}  // namespace

VisibleGpus find_gpus() {
  return {.count = 0,
          .why_none = "this program was built without CUDA: build it with `cmake --preset cuda`, which needs nvcc"};
}

#endif

namespace {

bool every_rank_has_one(Communicator& world, VisibleGpus const& gpus) {
  std::vector<std::uint64_t> count{static_cast<std::uint64_t>(gpus.count)};
  world.all_reduce(count, Reduce::min);
  return count.front() > 0;
}

}  // namespace

std::shared_ptr<Device> choose_device(Job& job) {
  auto const& asked = job.options.device;
  if (asked == "cpu") return nullptr;
  auto const gpus = find_gpus();
  if (asked == "auto" && !every_rank_has_one(job.world, gpus)) return nullptr;
  std::shared_ptr<Device> device;
  on_every_rank(job.world, [&] {
    if (gpus.count == 0) throw DeviceError("--device cuda: " + gpus.why_none);
    device =
        open(device_of_rank(job.options.rank.value_or(rank_on_host(job.world)), gpus.count), job.options.timeout());
  });
  job.report["device"] = job.report["choices"]["device"] = device->kind();
  job.console.say(fmt::format("device   {}{}", device->name(),
                              job.world.size() > 1 ? ", and for the other ranks theirs by turns" : ""));
  return device;
}

}  // namespace rankslice::cli

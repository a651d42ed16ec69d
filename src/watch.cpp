#include "watch.hpp"

#include <memory>

namespace rankslice {

BlockDone watch(CallOptions const& call, std::string_view phase, std::uint64_t total_bytes, Communicator* world) {
  return [call, phase, total_bytes, world, done = std::make_shared<std::uint64_t>(0)](std::uint64_t bytes) {
    *done += bytes;
    if (call.stop.stop_requested()) throw Interrupted();
    if (world != nullptr) world->progress();
    if (call.progress) call.progress({.phase = phase, .done = *done, .total = total_bytes});
  };
}

}  // namespace rankslice

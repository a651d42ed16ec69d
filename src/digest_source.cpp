#include <fmt/format.h>

#include "rankslice/verify.hpp"

#include "agreed_threads.hpp"
#include "parallel_reading.hpp"
#include "state/consistency.hpp"
#include "state/local_tensor.hpp"
#include "watch.hpp"

namespace rankslice {

namespace {

bool is_digested(StateDict const& state) { return state.read.source.tensors() > 0; }

void digest_slices_held(StateDict& state, CallOptions const& call, Communicator* world) {
  auto const& source = *state.source;
  if (source.format == CheckpointFormat::state) {
    throw UsageError(source.path + ": belongs to no checkpoint with which its values could be compared");
  }
  auto const slices = slices_held(state);
  auto const bytes = stored_bytes(source.storage, source.model, slices).read;
  state.read =
      digest_slices(source.model, slices, source.storage,
                    {.how = call.reading, .threads = call.threads, .done = watch(call, "verify", bytes, world)});
}

}  // namespace

void digest_source(StateDict& state, Communicator& world, CallOptions const& call) {
  on_every_rank(world, [&] { require_consistent(state, world); });
  auto const decided = with_threads(call, world);
  on_every_rank(world, [&] {
    if (!is_digested(state)) digest_slices_held(state, decided, &world);
  });
}

void digest_source(StateDict& state, CallOptions const& call) {
  require_consistent(state);
  if (!is_digested(state)) digest_slices_held(state, with_threads(call), nullptr);
}

}  // namespace rankslice

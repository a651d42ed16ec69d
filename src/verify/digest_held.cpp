#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "rankslice/device.hpp"
#include "rankslice/mesh.hpp"

#include "core/literals.hpp"
#include "core/rows_before.hpp"
#include "core/threads.hpp"
#include "state/local_tensor.hpp"
#include "transform/device_digest.hpp"
#include "transform/digests_of_threads.hpp"
#include "transform/parameter_digest.hpp"
#include "verify/rank_tables.hpp"

namespace rankslice {

namespace {

constexpr auto kBlockBytes = 1_MiB;

/// Some elements of a local tensor that are contiguous in the global one.
struct HeldBlock {
  std::uint64_t first_element;  // of the global tensor
  std::uint64_t begin, size;    // bytes of the local one
};

/// Call step(block) for all of a local tensor.
template <typename Step>
void for_each_block(ShardedTensor const& tensor, Step const& step) {
  auto const& parameter = tensor.parameter;
  auto const held = tensor.slice();
  auto const unit = parameter.unit_bytes(Form::native);
  for_each_run(parameter, held, [&](Slice const& run) {
    auto const before = bytes_before(parameter, held, run);
    auto const total = parameter.bytes(run, Form::native);
    for (std::uint64_t begin = 0; begin < total; begin += kBlockBytes) {
      step(HeldBlock{.first_element = first_element(parameter, run) + begin / unit,
                     .begin = before + begin,
                     .size = std::min<std::uint64_t>(kBlockBytes, total - begin)});
    }
  });
}

std::span<std::byte const> host_bytes(Buffer const& memory, HeldBlock const& block,
                                      std::vector<std::byte>& downloaded) {
  if (!memory.device) return memory.span().subspan(block.begin, block.size);
  downloaded.resize(block.size);
  memory.device->download(memory.data.get() + block.begin, downloaded);
  return downloaded;
}

/// Only the host computes values back to what they were converted from.
bool digested_on_device(ShardedTensor const& tensor) {
  return tensor.data.device && (!tensor.parameter.converted() || !tensor.parameter.invertible());
}

std::uint64_t bytes_held(StateDict const& state) {
  std::uint64_t bytes = 0;
  for (auto const& [fqn, tensor] : state.tensors) bytes += tensor.data.bytes;
  return bytes;
}

/// Digest the blocks that begin within `share`, of the bytes of all tensors laid end to end.
void digest_share(StateDict const& state, Range share, Digests& held, BlockDone const& done) {
  auto const& model = state.source->model;
  std::vector<std::byte> downloaded;
  std::uint64_t tensor_begin = 0;
  for (auto const& [fqn, tensor] : state.tensors) {
    Range const bytes{tensor_begin, tensor_begin + tensor.data.bytes};
    tensor_begin = bytes.end;
    if (bytes.end <= share.begin || share.end <= bytes.begin) continue;
    if (digested_on_device(tensor)) {
      add_native_on_device(model, tensor.parameter, tensor.slice(), tensor.data, held);
      done(tensor.data.bytes);
      continue;
    }
    ParameterDigest digest(model, tensor.parameter);
    for_each_block(tensor, [&, &of = tensor](HeldBlock const& block) {
      auto const at = bytes.begin + block.begin;
      if (at < share.begin || share.end <= at) return;
      digest.add_native(block.first_element, host_bytes(of.data, block, downloaded), held);
      done(block.size);
    });
  }
}

}  // namespace

Digests digest_held(StateDict const& state, CallOptions const& call, Communicator* world) {
  Digests held(state.source->model);
  held.without_codes = true;
  auto const total = bytes_held(state);
  auto const threads = on_a_device(state) ? 1 : std::max(1, call.threads);
  DigestsOfThreads held_by(state.source->model, &held, static_cast<std::size_t>(threads));
  std::uint64_t done = 0;
  auto const account = [&](std::uint64_t bytes) {
    done += bytes;
    if (call.stop.stop_requested()) throw Interrupted();
    if (world != nullptr) world->progress();
    if (call.progress) call.progress({.phase = "verify", .done = done, .total = total});
  };
  in_threads(threads, account, [&](int thread, BlockDone const& block_done) {
    auto const number = static_cast<std::size_t>(thread);
    auto const share = balanced_part(total, static_cast<std::uint64_t>(threads), number);
    digest_share(state, share, *held_by.of(number), block_done);
  });
  held_by.sum();
  return held;
}

}  // namespace rankslice

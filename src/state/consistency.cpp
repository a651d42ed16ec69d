#include "state/consistency.hpp"

#include <fmt/format.h>

#include <span>

#include "core/fingerprint.hpp"
#include "core/mesh.hpp"
#include "core/slice_at.hpp"

namespace rankslice {

namespace {

[[noreturn]] void refuse(ShardedTensor const& tensor, std::string const& problem) {
  throw PlanError(fmt::format("{}: {}", tensor.parameter.fqn, problem), tensor.parameter.fqn);
}

void require_tensor(ShardedTensor const& tensor, Checkpoint const& source) {
  auto const& parameters = source.model.parameters;
  if (tensor.index >= parameters.size() || parameters[tensor.index] != tensor.parameter) {
    refuse(tensor, fmt::format("is not parameter {} of {}", tensor.index, source.path));
  }
  auto const slice = slice_at(tensor.parameter, tensor.offsets, tensor.local_shape);
  if (!slice) {
    refuse(tensor, fmt::format("local tensor {} at {} is no slice of {}", to_string(tensor.local_shape),
                               to_string(tensor.offsets), to_string(tensor.parameter.shape)));
  }
  auto const expected = tensor.parameter.bytes(*slice, Form::native);
  if (tensor.data.bytes != expected) {
    refuse(tensor, fmt::format("local tensor {} takes {} bytes, its buffer has {}", to_string(tensor.local_shape),
                               expected, tensor.data.bytes));
  }
  if (expected != 0 && tensor.data.data == nullptr) {
    refuse(tensor, fmt::format("local tensor {} has no memory", to_string(tensor.local_shape)));
  }
}

/// Where recorded digests are from, which of them are known, and what they are.
std::string recorded_fingerprint(Checkpoint const& checkpoint) {
  if (!checkpoint.digests) return {};
  auto const& [source, stored, without_codes, without_values] = *checkpoint.digests;
  return fmt::format("{} {} {} {} {}", checkpoint.digests_from, xxh3_128(std::as_bytes(source.values())),
                     xxh3_128(std::as_bytes(stored.values())), without_codes, without_values);
}

}  // namespace

void require_consistent(StateDict const& state) {
  if (state.source == nullptr) throw PlanError("the state dict has no source, which says what its tensors are part of");
  require_inside(state.mesh, state.coordinate);
  for (auto const& [fqn, tensor] : state.tensors) {
    if (fqn != tensor.parameter.fqn) {
      throw PlanError(fmt::format("{}: the state dict has {} under this name", fqn, tensor.parameter.fqn), fqn);
    }
    require_tensor(tensor, *state.source);
  }
}

void require_consistent(StateDict const& state, Communicator const& world) {
  require_consistent(state);
  auto const rank = state.mesh.rank(state.coordinate);
  if (state.mesh.ranks() == world.size() && rank == world.rank()) return;
  throw PlanError(fmt::format("the state is that of rank {} of {}, but this is rank {} of {}", rank, state.mesh.ranks(),
                              world.rank(), world.size()));
}

void require_same_mesh(Mesh const& mesh, Communicator& world) {
  auto of_rank_0 = mesh;
  world.broadcast(std::as_writable_bytes(std::span(&of_rank_0, 1)), 0);
  on_every_rank(world, [&] {
    require_valid(mesh);
    if (mesh.ranks() != world.size()) {
      throw PlanError(
          fmt::format("a mesh of {} ranks is not one of the {} that there are", to_string(mesh), world.size()));
    }
    if (mesh == of_rank_0) return;
    throw PlanError(fmt::format("rank {} has another mesh than rank 0: {} ranks (ep_replicate × ep_shard × ep), not {}",
                                world.rank(), to_string(mesh), to_string(of_rank_0)));
  });
}

void require_same(std::string const& fingerprint, std::string const& problem, Communicator& world) {
  auto of_rank_0 = fingerprint;
  world.broadcast(std::as_writable_bytes(std::span(of_rank_0)), 0);
  on_every_rank(world, [&] {
    if (fingerprint != of_rank_0) throw PlanError(fmt::format("rank {}: {}", world.rank(), problem));
  });
}

void require_same_options(std::string const& options, Communicator& world) {
  require_same(xxh3_128(std::as_bytes(std::span(options))),
               fmt::format("its options are not those of rank 0, as they must be: {}", options), world);
}

std::string model_fingerprint(Checkpoint const& source) {
  auto text = fmt::format("{} {}", source.fingerprint, source.family);
  for (auto const& parameter : source.model.parameters) {
    text += fmt::format("\n{} {} {} {} {}", parameter.fqn, name(parameter.hf_dtype), name(parameter.dtype),
                        static_cast<int>(parameter.layout), to_string(parameter.shape));
  }
  text += '\n' + recorded_fingerprint(source);
  return xxh3_128(std::as_bytes(std::span(text)));
}

std::string checkpoint_fingerprint(Checkpoint const& checkpoint) {
  auto text = fmt::format("{} {} {}", model_fingerprint(checkpoint), static_cast<int>(checkpoint.format),
                          static_cast<int>(checkpoint.storage.form));
  if (checkpoint.format == CheckpointFormat::shards) {  // of which the ranks compare the copies together
    for (auto const& piece : checkpoint.storage.pieces) {
      text += fmt::format("\n{} {} {}", piece.parameter, to_string(piece.slice), piece.extent.file);
    }
  }
  return xxh3_128(std::as_bytes(std::span(text)));
}

void require_same_checkpoint(Checkpoint const& checkpoint, Communicator& world) {
  require_same(checkpoint_fingerprint(checkpoint),
               fmt::format("has another checkpoint than rank 0, or knows other digests of it: {}, {}", checkpoint.path,
                           describe_recorded(checkpoint)),
               world);
}

std::string describe_recorded(Checkpoint const& checkpoint) {
  if (!checkpoint.digests) return "no recorded digests";
  return fmt::format("digests of its {}", checkpoint.digests_from);
}

void require_agreement(StateDict const& state, Communicator& world) {
  on_every_rank(world, [&] { require_consistent(state, world); });
  require_same_mesh(state.mesh, world);
  require_same(model_fingerprint(*state.source),
               fmt::format("its state has other tensors, dtypes, layouts, global shapes or recorded digests than rank "
                           "0's: {} of {}, {}",
                           state.source->model.parameters.size(), state.source->path, describe_recorded(*state.source)),
               world);
}

}  // namespace rankslice

#include "state/consistency.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace rankslice {

namespace {

[[noreturn]] void refuse(ShardedTensor const& tensor, std::string const& problem) {
  throw PlanError(fmt::format("{}: {}", tensor.parameter.fqn, problem), tensor.parameter.fqn);
}

void require_place(ShardedTensor const& tensor) {
  auto const& global = tensor.parameter.shape;
  auto const& local = tensor.local_shape;
  auto const& offsets = tensor.offsets;
  auto fits = local.size() == global.size() && offsets.size() == global.size();
  for (std::size_t axis = 0; fits && axis < global.size(); ++axis) {
    auto const sharded = axis < 2 && tensor.parameter.stacked_experts;
    fits = sharded ? offsets[axis] <= global[axis] && local[axis] <= global[axis] - offsets[axis]
                   : offsets[axis] == 0 && local[axis] == global[axis];
  }
  if (fits) return;
  refuse(tensor, fmt::format("local tensor {} at {} is no slice of {}", to_string(local), to_string(offsets),
                             to_string(global)));
}

}  // namespace

void require_consistent(ShardedTensor const& tensor, Checkpoint const& source) {
  auto const& parameters = source.model.parameters;
  if (tensor.index >= parameters.size() || parameters[tensor.index] != tensor.parameter) {
    refuse(tensor, fmt::format("is not parameter {} of {}", tensor.index, source.path));
  }
  require_place(tensor);
  auto const expected = tensor.parameter.bytes(tensor.slice(), Form::native);
  if (tensor.data.bytes == expected) return;
  refuse(tensor, fmt::format("local tensor {} takes {} bytes, its buffer has {}", to_string(tensor.local_shape),
                             expected, tensor.data.bytes));
}

void require_consistent(StateDict const& state, Communicator const& world) {
  auto const coordinate = state.mesh.coordinate(world.rank());
  if (state.mesh.ranks() != world.size() || state.coordinate != coordinate) {
    auto const rank = state.mesh.rank(state.coordinate);
    throw PlanError(fmt::format("the state is that of rank {} of {}, but this is rank {} of {}", rank,
                                state.mesh.ranks(), world.rank(), world.size()));
  }
  for (auto const& [fqn, tensor] : state.tensors) require_consistent(tensor, *state.source);
}

void require_same_source(StateDict const& state, Communicator& world) {
  auto of_rank_0 = state.source->fingerprint;  // as long on every rank
  world.broadcast(std::as_writable_bytes(std::span(of_rank_0)), 0);
  on_every_rank(world, [&] {
    if (state.source->fingerprint == of_rank_0) return;
    throw PlanError(fmt::format("this rank's state has other tensors, dtypes or global shapes than rank 0's: {} of {}",
                                state.source->model.parameters.size(), state.source->path));
  });
}

}  // namespace rankslice

#include "support/divided_state.hpp"

#include <algorithm>

#include "io/memory.hpp"
#include "verify/rank_tables.hpp"

namespace rankslice::test {

namespace {

void narrow(Part& part, std::size_t axis, Range range) {
  part.offsets[axis] = range.begin;
  part.shape[axis] = range.size();
}

/// Along axis 0, if there is one.
Part chunk(Parameter const& parameter, int parts, int index) {
  auto part = whole_part(parameter.shape);
  if (!part.shape.empty()) narrow(part, 0, torch_chunk(parameter.shape[0], parts, index));
  return part;
}

Range balanced(std::uint64_t length, int parts, int index) {
  return balanced_part(length, static_cast<std::uint64_t>(parts), static_cast<std::uint64_t>(index));
}

/// Experts as the mesh says, dense tensors along axis 0.
WayToDivide fsdp_beside(std::string const& name, Mesh const& mesh) {
  return {"fsdp beside " + name, mesh, [mesh](Parameter const& parameter, int rank) {
            if (!parameter.stacked_experts) return chunk(parameter, mesh.ranks(), rank);
            auto const at = mesh.coordinate(rank);
            auto part = whole_part(parameter.shape);
            narrow(part, 0, balanced(parameter.shape[0], mesh.ep, at.ep));
            narrow(part, 1, balanced(parameter.shape[1], mesh.ep_shard, at.ep_shard));
            return part;
          }};
}

/// Experts in boxes of unequal experts and rows, dense tensors whole.
WayToDivide boxes() {
  return {"boxes", make_mesh(4), [](Parameter const& parameter, int rank) {
            auto part = whole_part(parameter.shape);
            if (!parameter.stacked_experts) return part;
            auto const half = rank / 2;
            narrow(part, 0, torch_chunk(parameter.shape[0], 2, half));
            auto const rows = parameter.shape[1];
            auto const cut = rows / 3 + static_cast<std::uint64_t>(half);  // another one for each half
            narrow(part, 1, rank % 2 == 0 ? Range{0, cut} : Range{cut, rows});
            return part;
          }};
}

WayToDivide replicated() {
  return {"replicated", make_mesh(3), [](Parameter const& parameter, int) { return whole_part(parameter.shape); }};
}

/// Ranks without anything before and after the one that has all.
WayToDivide on_one_of_three() {
  return {"on one of three", make_mesh(3), [](Parameter const& parameter, int rank) {
            auto part = whole_part(parameter.shape);
            auto const end = part.shape.empty() ? 0 : parameter.shape[0];
            if (rank != 1 && !part.shape.empty()) narrow(part, 0, rank == 0 ? Range{} : Range{end, end});
            return part;
          }};
}

/// Matrices in parts, in the opposite order, vectors whole; experts on two ranks each that are not the mesh's replicas.
WayToDivide mixed() {
  return {"mixed", {.ep_replicate = 2, .ep_shard = 1, .ep = 2}, [](Parameter const& parameter, int rank) {
            if (parameter.stacked_experts) return chunk(parameter, 2, rank / 2);
            return parameter.shape.size() == 1 ? whole_part(parameter.shape) : chunk(parameter, 4, 3 - rank);
          }};
}

}  // namespace

Range torch_chunk(std::uint64_t length, int parts, int index) {
  auto const count = static_cast<std::uint64_t>(parts);
  auto const size = (length + count - 1) / count;
  auto const at = [&](int number) { return std::min(length, static_cast<std::uint64_t>(number) * size); };
  return {at(index), at(index + 1)};
}

WayToDivide fsdp(int ranks) {
  return {"fsdp over " + std::to_string(ranks), make_mesh(ranks),
          [ranks](Parameter const& parameter, int rank) { return chunk(parameter, ranks, rank); }};
}

WayToDivide hsdp() {
  return {"hsdp 2 x 2", make_mesh(4),
          [](Parameter const& parameter, int rank) { return chunk(parameter, 2, rank % 2); }};
}

std::vector<WayToDivide> ways_to_divide() {
  return {fsdp(1),
          fsdp(2),
          fsdp(3),
          fsdp(4),
          fsdp_beside("ep 3", make_mesh(3)),
          fsdp_beside("ep 2, ep_shard 2", make_mesh(4, 2, 2)),
          fsdp_beside("two replicas", make_mesh(4, 2)),
          hsdp(),
          boxes(),
          replicated(),
          on_one_of_three(),
          mixed()};
}

StateDict divide(StateDict const& whole, WayToDivide const& way, int rank) {
  std::map<std::string, LocalTensor> tensors;
  for (auto const& [fqn, all] : whole.tensors) {
    auto const& parameter = all.parameter;
    auto const part = way.part(parameter, rank);
    auto const memory = all.data.span();
    auto const bytes = bytes_in(part, {memory.begin(), memory.end()}, parameter.shape, element_bytes(parameter.dtype));
    auto const copy = allocate_host(bytes.size());
    std::ranges::copy(bytes, copy.data.get());
    tensors[fqn] = {.dtype = parameter.dtype,
                    .global_shape = parameter.shape,
                    .data = copy,
                    .offsets = part.offsets,
                    .local_shape = part.shape};
  }
  auto state = make_state_dict(whole.source, tensors, way.mesh, way.mesh.coordinate(rank));
  state.read = digest_held(state, {}, nullptr);
  state.read.without_codes = false;
  return state;
}

}  // namespace rankslice::test

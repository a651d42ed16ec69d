#pragma once

#include <functional>
#include <string>
#include <vector>

#include "rankslice/state_dict.hpp"

#include "support/local_parts.hpp"

namespace rankslice::test {

/// A way to divide the tensors of a model among ranks that their mesh need not know of.
struct WayToDivide {
  std::string name;
  Mesh mesh;
  std::function<Part(Parameter const& parameter, int rank)> part{};
};

/// Part `index` of `parts` as `torch.chunk` cuts a length: all but the last ones are of the same size, rounded up.
[[nodiscard]] Range torch_chunk(std::uint64_t length, int parts, int index);

/// Everything along axis 0, as FSDP does over some ranks.
[[nodiscard]] WayToDivide fsdp(int ranks);
/// Two copies of everything in two parts each, on four ranks: HSDP.
[[nodiscard]] WayToDivide hsdp();
/// What training libraries make of 1 to 4 ranks, evenly or not: those two and others.
[[nodiscard]] std::vector<WayToDivide> ways_to_divide();

/// The state of one rank: copies of its parts of tensors that are whole in `whole`, where nothing is converted, with
/// the digests that reading them would have left.
[[nodiscard]] StateDict divide(StateDict const& whole, WayToDivide const& way, int rank);

}  // namespace rankslice::test

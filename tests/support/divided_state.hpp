#pragma once

#include <functional>
#include <string>
#include <vector>

#include "rankslice/state_dict.hpp"

namespace rankslice::test {

/// What a rank holds of a tensor: indices of axis 0, and of stacked experts those of axis 1 too.
struct LocalBox {
  Range first;
  Range second;
};

/// A way to divide the tensors of a model among ranks that a mesh does not know.
struct WayToDivide {
  std::string name;
  int ranks = 1;
  Mesh mesh;
  std::function<LocalBox(Parameter const& parameter, int rank)> box{};
};

/// Part `index` of `parts` as `torch.chunk` cuts a length: all but the last ones are of the same size, rounded up.
[[nodiscard]] Range torch_chunk(std::uint64_t length, int parts, int index);

/// What training libraries make of 1 to 4 ranks, evenly or not.
[[nodiscard]] std::vector<WayToDivide> ways_to_divide();

/// The state of one rank: copies of its parts of tensors that are whole in `whole`, with the digests that loading them
/// would have left.
[[nodiscard]] StateDict divide(StateDict const& whole, WayToDivide const& way, int rank);

}  // namespace rankslice::test

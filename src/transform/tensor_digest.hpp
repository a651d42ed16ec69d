#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "rankslice/parameter.hpp"

namespace rankslice {

/// Computes digest/1 of one tensor from parts of it, in either form (`digest.md` of the design; the definition is in
/// the README's format section). Holds the row and column factors of the tensor, so that a block costs one multiply
/// per element.
class TensorDigest {
 public:
  /// @param hf_shape global shape as the checkpoint file stores it. @throws FormatError when r or c reach 2^31.
  TensorDigest(DType dtype, Shape const& hf_shape);

  /// How many numbers the tensor has: its first axis when the rank is at least 3, else 1.
  [[nodiscard]] static std::size_t entries(Shape const& hf_shape);

  /// Add to `d` (`entries` numbers) what a run of elements contributes. The run starts at `first_element`, row-major
  /// in the HF form (bytes, for sub-byte types), may begin and end in the middle of a row, and holds whole elements.
  void add(std::uint64_t first_element, std::span<std::byte const> bytes, std::span<std::uint64_t> d) const;

  /// The same for a run in the native form [E, C, R] of an HF tensor [E, R, C] (`Layout::swapped`): `first_element` is
  /// row-major there.
  void add_swapped(std::uint64_t first_element, std::span<std::byte const> bytes, std::span<std::uint64_t> d) const;

 private:
  DType dtype_;
  std::uint64_t experts_ = 1, rows_ = 1, words_ = 1;  // words_: of one row
  std::vector<std::uint32_t> row_factor_, word_factor_;
};

/// A(e): the odd weight of an entry, and its inverse, which turns d(e) into q(e), which does not depend on e.
[[nodiscard]] std::uint64_t expert_factor(std::uint64_t e);
[[nodiscard]] std::uint64_t inverse_modulo_2_64(std::uint64_t odd);

}  // namespace rankslice

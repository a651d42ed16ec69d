#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>

#include "rankslice/parameter.hpp"

#include "core/digest_factors.hpp"
#include "transform/weigh.hpp"

namespace rankslice {

/// F_r or F_c: the odd weights of the positions along one axis, all different. For axes of usual length they are kept
/// from the first lines on that are weighed, and else computed for each.
class AxisFactors {
 public:
  AxisFactors(DigestAxis axis, std::uint64_t size) : axis_(axis), size_(size) {}

  [[nodiscard]] std::uint32_t at(std::uint64_t position) const { return digest_factor(axis_, position); }
  /// `weigh_lines` of lines along this axis that begin at position `first`: a sum for each.
  void weigh(WordLines const& words, std::uint64_t first, std::span<std::uint64_t> sums) const;

 private:
  DigestAxis axis_;
  std::uint64_t size_;
  mutable std::once_flag filled_;
  mutable FactorTable kept_;
};

/// Computes digest/1 of one tensor from parts of it, in either form (`digest.md` of the design; the definition is in
/// the README's format section). Adding is thread-safe as long as every thread has its own numbers.
class TensorDigest {
 public:
  /// @param hf_shape global shape as the checkpoint file stores it. @throws FormatError when r or c reach 2^31.
  TensorDigest(DType dtype, Shape const& hf_shape);

  /// How many numbers the tensor has: its first axis when the rank is at least 3 (0 when there are no elements: its
  /// other axes may say anything then), else 1. Sub-byte types, of which the digest sees a row of bytes, always have 1.
  [[nodiscard]] static std::size_t entries(DType dtype, Shape const& hf_shape);

  /// Add to `d` (`entries` numbers) what a run of elements contributes. The run starts at `first_element`, row-major
  /// in the HF form (bytes, for sub-byte types), may begin and end in the middle of a row, and holds whole elements.
  /// @throws PlanError for a run that leaves the tensor, here and below.
  void add(std::uint64_t first_element, std::span<std::byte const> bytes, std::span<std::uint64_t> d) const;

  /// The same for a run in the native form [E, C, R] of an HF tensor [E, R, C] (`Layout::swapped`): `first_element` is
  /// row-major there.
  void add_swapped(std::uint64_t first_element, std::span<std::byte const> bytes, std::span<std::uint64_t> d) const;

 private:
  /// The tensor as matrices of words, one for each entry.
  struct Words {
    std::uint64_t experts = 1, rows = 1, columns = 1;
    std::uint64_t bytes = 1;        // of one word
    std::uint64_t per_element = 1;  // 2 for elements of 8 bytes
    Words(DType dtype, Shape const& hf_shape);
  };
  void check_inside(std::uint64_t first_element, std::uint64_t elements) const;
  /// How a form of the tensor lies in memory: lines of words, numbered through all entries.
  struct Lines {
    AxisFactors const& along;
    AxisFactors const& across;
    std::uint64_t of_entry, length;
    std::uint64_t word_stride;                        // in bytes
    std::uint64_t first_across = 0, step_across = 1;  // positions of the lines of an entry
  };
  void add_lines(Lines const& lines, std::uint64_t first_word, std::byte const* words, std::uint64_t count,
                 std::span<std::uint64_t> d) const;

  Words words_;
  AxisFactors row_factors_, column_factors_;
};

/// The inverse of an entry's weight turns d(e) into q(e), which does not depend on e.
[[nodiscard]] std::uint64_t inverse_modulo_2_64(std::uint64_t odd);

}  // namespace rankslice

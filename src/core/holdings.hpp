#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "rankslice/mesh.hpp"
#include "rankslice/parameter.hpp"

namespace rankslice {

/// A slice of a parameter, and the ranks that hold just this, lowest first.
struct HeldPart {
  Slice slice;
  std::vector<int> holders;
};

/// What every rank holds of a parameter.
class Division {
 public:
  /// By rank.
  explicit Division(std::vector<Slice> slices);

  [[nodiscard]] Slice const& held_by(int rank) const { return slices_[static_cast<std::size_t>(rank)]; }
  /// The slices that are held, in order, each once; those without elements are not among them.
  [[nodiscard]] std::vector<HeldPart> const& parts() const { return parts_; }
  /// Neighbours among them: all that have some of these experts or elements, and between such others perhaps.
  [[nodiscard]] std::span<HeldPart const> parts_around(Range experts) const;
  /// The number of the part that a rank holds: that of no part when it holds nothing.
  [[nodiscard]] std::size_t part_of(int rank) const;

 private:
  std::vector<Slice> slices_;
  std::vector<HeldPart> parts_;
  std::vector<std::uint64_t> reach_;  // of each part: where it and those before it end
};

/// Who holds which slices of the parameters of a model: what the mesh gives to each rank, but for those parameters of
/// which any rank holds something else.
struct Holdings {
  Mesh mesh;
  std::vector<Division> divisions{};                   ///< Of one or more such parameters.
  std::map<std::uint32_t, std::size_t> division_of{};  ///< Which of them, by parameter.

  /// Null for a parameter that is held as the mesh says.
  [[nodiscard]] Division const* division(std::uint32_t parameter) const;
};

}  // namespace rankslice

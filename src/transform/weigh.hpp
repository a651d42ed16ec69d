#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/digest_factors.hpp"

namespace rankslice {

/// Some factors of an axis in the forms that kernels multiply with.
struct FactorRun {
  std::uint32_t const* whole = nullptr;
  std::array<std::int16_t const*, 3> pieces{};  ///< Of 11, 11 and 10 bits, lowest first.
};

/// F_r or F_c of consecutive positions.
class FactorTable {
 public:
  FactorTable() = default;
  FactorTable(DigestAxis axis, std::uint64_t first, std::uint64_t count) { fill(axis, first, count); }

  /// Forget what was there.
  void fill(DigestAxis axis, std::uint64_t first, std::uint64_t count);
  [[nodiscard]] std::uint64_t size() const { return whole_.size(); }
  /// From the table's position `begin` on.
  [[nodiscard]] FactorRun from(std::uint64_t begin) const;

 private:
  std::vector<std::uint32_t> whole_;
  std::array<std::vector<std::int16_t>, 3> pieces_;
};

/// Lines of little-endian words at any address: `count` words of 1, 2 or 4 bytes each, that follow one another, or, at
/// less speed, are any distance apart, as halves of elements of 8 bytes are and the words of a column.
struct WordLines {
  std::byte const* data = nullptr;
  std::uint64_t word_bytes = 1, word_stride = 1;  ///< In bytes.
  std::uint64_t count = 0;
  std::uint64_t lines = 0, line_stride = 0;  ///< In bytes.
};

/// sums[i] = Σ_j factor j·(word j of line i + 1), with the widest vectors that this machine has. Local.
void weigh_lines(WordLines const& words, FactorRun const& factors, std::uint64_t* sums);

}  // namespace rankslice

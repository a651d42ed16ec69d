#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace rankslice {

/// Finds names among many. Built by sorting, so that no choice of names makes it slow (a hash table can be driven to
/// quadratic time by a file made for it). The names must outlive it.
class NameTable {
 public:
  explicit NameTable(std::vector<std::string_view> names);

  /// The place of a name in the list that was given; any one of them when it occurs more than once.
  [[nodiscard]] std::optional<std::size_t> find(std::string_view name) const;

  struct Duplicate {
    std::size_t first = 0, second = 0;  ///< Places in the list that was given.
  };
  /// The duplicate whose second occurrence comes first in the list.
  [[nodiscard]] std::optional<Duplicate> duplicate() const;

 private:
  struct Entry {
    std::size_t hash = 0;
    std::size_t place = 0;
  };

  std::vector<std::string_view> names_;
  std::vector<Entry> entries_;  ///< By (hash, name, place).
};

}  // namespace rankslice

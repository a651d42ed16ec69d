#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace rankslice {

/// For the message of an error that has many causes: line(i) of the first ten of `listed`, each on a line of its own,
/// and how many of `all` are not among them. Pure.
[[nodiscard]] std::string name_first(std::size_t listed, std::uint64_t all,
                                     std::function<std::string(std::size_t)> const& line);

}  // namespace rankslice

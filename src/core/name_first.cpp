#include "core/name_first.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace rankslice {

std::string name_first(std::size_t listed, std::uint64_t all, std::function<std::string(std::size_t)> const& line) {
  constexpr std::size_t kNamed = 10;
  auto const named = std::min(kNamed, listed);
  std::string lines;
  for (std::size_t i = 0; i < named; ++i) lines += "\n  " + line(i);
  if (all > named) lines += fmt::format("\n  … and {} more", all - named);
  return lines;
}

}  // namespace rankslice

#include "facts/words.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace rankslice {

std::string human_bytes(std::uint64_t bytes) {
  constexpr std::array kUnits{"B", "KB", "MB", "GB", "TB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (; value >= 1000 && unit + 1 < kUnits.size(); ++unit) value /= 1000;
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.3g} {}", value, kUnits[unit]);
}

std::string counted(std::uint64_t n, std::string const& singular) {
  return fmt::format("{} {}{}", n, singular, n == 1 ? "" : "s");
}

Json describe_error(Error const& error) {
  return {{"code", static_cast<int>(error.code)},
          {"message", error.what()},
          {"rank", std::max(0, error.rank)},
          {"file", error.file},
          {"tensor", error.tensor}};
}

std::string json_text(Json const& value) { return value.dump(2, ' ', false, Json::error_handler_t::replace) + "\n"; }

}  // namespace rankslice

#include <algorithm>
#include <array>
#include <utility>

#include "rankslice/options.hpp"

namespace rankslice {

namespace {

using Named = std::pair<VerifyLevel, std::string_view>;

constexpr std::array kLevels{Named{VerifyLevel::off, "off"}, Named{VerifyLevel::coverage, "coverage"},
                             Named{VerifyLevel::full, "full"}, Named{VerifyLevel::reread, "reread"}};

}  // namespace

std::string_view name(VerifyLevel level) { return std::ranges::find(kLevels, level, &Named::first)->second; }

std::optional<VerifyLevel> parse_verify_level(std::string_view name) {
  auto const found = std::ranges::find(kLevels, name, &Named::second);
  return found == kLevels.end() ? std::nullopt : std::optional(found->first);
}

}  // namespace rankslice

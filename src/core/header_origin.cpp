#include <algorithm>
#include <array>

#include "rankslice/checkpoint.hpp"

namespace rankslice {

namespace {

struct Entry {
  HeaderOrigin origin;
  std::string_view name;
  std::string_view why_fresh;
};

constexpr std::array kEntries{
    Entry{HeaderOrigin::source, "source", ""},
    Entry{HeaderOrigin::selection, "selection", "some of the tensors were left out"},
    Entry{HeaderOrigin::converted, "converted", "values were converted to another dtype"},
    Entry{HeaderOrigin::state, "state", "there is no checkpoint to take them from"},
};

Entry const& entry_of(HeaderOrigin origin) { return *std::ranges::find(kEntries, origin, &Entry::origin); }

}  // namespace

std::string_view name(HeaderOrigin origin) { return entry_of(origin).name; }

std::optional<HeaderOrigin> parse_header_origin(std::string_view name) {
  auto const found = std::ranges::find(kEntries, name, &Entry::name);
  return found == kEntries.end() ? std::nullopt : std::optional(found->origin);
}

std::string_view why_fresh(HeaderOrigin origin) { return entry_of(origin).why_fresh; }

}  // namespace rankslice

#include "python/native/arguments.hpp"

namespace rankslice::python {

std::optional<ExportLayout> parse_export_layout(std::string const& name) {
  if (name == "auto") return ExportLayout::automatic;
  return name == "source" ? std::optional(ExportLayout::source) : std::nullopt;
}

std::optional<GdnDtype> parse_gdn_dtype(std::string const& name) {
  if (name == "preserve") return GdnDtype::preserve;
  return name == "upstream" ? std::optional(GdnDtype::upstream) : std::nullopt;
}

}  // namespace rankslice::python

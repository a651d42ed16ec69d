#pragma once

#include <fmt/format.h>

#include "rankslice/error.hpp"
#include "rankslice/tensor_catalog.hpp"

namespace rankslice {

/// The error of a tensor that does not fit its model: file, tensor, reason.
[[nodiscard]] inline FormatError tensor_error(TensorCatalog const& catalog, CatalogTensor const& tensor,
                                              std::string const& reason) {
  auto const& file = catalog.files[tensor.extent.file].name;
  return FormatError(fmt::format("{}: {}: {}", file, tensor.name, reason), file, tensor.name);
}

}  // namespace rankslice

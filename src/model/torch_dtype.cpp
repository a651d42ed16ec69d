#include "model/torch_dtype.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "rankslice/error.hpp"

namespace rankslice {

std::optional<DType> parse_torch_dtype(std::string_view name) {
  auto const found = std::ranges::find(kTorchDTypes, name, &TorchDType::name);
  return found == kTorchDTypes.end() ? std::nullopt : std::optional(found->dtype);
}

std::string_view torch_name(DType dtype) {
  auto const found = std::ranges::find(kTorchDTypes, dtype, &TorchDType::dtype);
  if (found != kTorchDTypes.end()) return found->name;
  throw PlanError(fmt::format("no weights of a model are {}", name(dtype)));
}

}  // namespace rankslice

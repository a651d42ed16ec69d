#pragma once

#include <array>
#include <optional>
#include <string_view>

#include "rankslice/dtype.hpp"

namespace rankslice {

/// A dtype in which models are trained, under the name that torch and config.json have for it.
struct TorchDType {
  std::string_view name;
  DType dtype;
};

inline constexpr std::array<TorchDType, 3> kTorchDTypes{
    {{"bfloat16", DType::BF16}, {"float16", DType::F16}, {"float32", DType::F32}}};

/// Nothing for other dtypes than those of training.
[[nodiscard]] std::optional<DType> parse_torch_dtype(std::string_view name);
/// @throws PlanError for other dtypes than those of training
[[nodiscard]] std::string_view torch_name(DType dtype);

}  // namespace rankslice

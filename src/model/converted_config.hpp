#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "rankslice/dtype.hpp"

namespace rankslice {

/// A config.json for the same model with nothing quantised and all weights in `dtype` (BF16, F16 or F32): without
/// `quantization_config`, and with `dtype` in place of what the members `dtype` and `torch_dtype` say, where there are
/// such. All else, and the order, is kept. As transformers writes it: two spaces, a newline at the end. Pure.
/// @throws FormatError for bytes that are no JSON object
[[nodiscard]] std::vector<std::byte> convert_config(std::span<std::byte const> config_json, DType dtype);

}  // namespace rankslice

#pragma once

#include "rankslice/dtype.hpp"

namespace rankslice {

/// Floats of 8 bits and fewer: weights in them mean nothing without their scales. Of these only F8_E4M3 is supported.
[[nodiscard]] constexpr bool is_quantised(DType dtype) {
  switch (dtype) {
    case DType::F4:
    case DType::F6_E2M3:
    case DType::F6_E3M2:
    case DType::F8_E4M3:
    case DType::F8_E4M3FNUZ:
    case DType::F8_E5M2:
    case DType::F8_E5M2FNUZ:
    case DType::F8_E8M0:
      return true;
    default:
      return false;
  }
}

}  // namespace rankslice

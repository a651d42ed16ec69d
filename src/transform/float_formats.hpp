#pragma once

#include <bit>
#include <cstdint>

#include "rankslice/dtype.hpp"

namespace rankslice {

/// The bits of one F32, as which every value passes from one float type to another: they all fit into it.
using F32Bits = std::uint32_t;

inline constexpr F32Bits kF32Sign = 0x8000'0000;
inline constexpr F32Bits kF32Magnitude = 0x7FFF'FFFF;
inline constexpr F32Bits kF32Infinity = 0x7F80'0000;
inline constexpr std::uint32_t kF32MantissaBits = 23;
inline constexpr std::uint32_t kF32Bias = 127;

/// value / 2^shift, to nearest, ties to even.
constexpr std::uint32_t shift_to_even(std::uint32_t value, std::uint32_t shift) {
  auto const odd = (value >> shift) & 1;
  return (value + (1U << (shift - 1)) - 1 + odd) >> shift;
}

/// What F16 and F8_E4M3 have in common: fewer exponents than F32, so that their subnormals are normal there. Without
/// branches, and without subnormal F32 results, which are slow and which a program may have switched off.
///
/// @tparam first_special the magnitude from which on there are no numbers.
template <std::uint32_t mantissa_bits, std::uint32_t bias, std::uint32_t first_special>
struct SmallFloat {
  static constexpr auto kShift = kF32MantissaBits - mantissa_bits;
  static constexpr auto kRebias = (kF32Bias - bias) << kF32MantissaBits;
  static constexpr auto kSmallestNormal = kRebias + (1U << kF32MantissaBits);
  /// A number whose last bit counts as much as the smallest subnormal.
  static constexpr auto kUnit = kSmallestNormal + (kShift << kF32MantissaBits);

  static constexpr F32Bits widen(std::uint32_t magnitude) {
    auto const normal = (magnitude << kShift) + kRebias;
    auto const one_more = std::bit_cast<float>(normal + (1U << kF32MantissaBits));
    auto const subnormal = std::bit_cast<F32Bits>(one_more - std::bit_cast<float>(kSmallestNormal));
    auto const number = magnitude < (1U << mantissa_bits) ? subnormal : normal;
    return magnitude < first_special ? number : kF32Infinity | (magnitude << kShift);
  }

  /// To nearest, ties to even; of numbers that are too large, something at or above `first_special`.
  static constexpr std::uint32_t narrow(F32Bits magnitude) {
    auto const counted = std::bit_cast<float>(magnitude) + std::bit_cast<float>(kUnit);
    auto const subnormal = std::bit_cast<F32Bits>(counted) - kUnit;
    return magnitude < kSmallestNormal ? subnormal : shift_to_even(magnitude - kRebias, kShift);
  }
};

/// `widen` gives the F32 of a value of the type, exactly; `narrow` the value nearest to an F32, ties to even. A NaN
/// keeps its sign and the leading bits of its payload, so that every value comes back from a wider type as it was.
template <DType dtype>
struct Float;

template <>
struct Float<DType::F32> {
  using Bits = std::uint32_t;
  static constexpr F32Bits widen(Bits value) { return value; }
  static constexpr Bits narrow(F32Bits value) { return value; }
};

template <>
struct Float<DType::BF16> {
  using Bits = std::uint16_t;
  static constexpr F32Bits widen(Bits value) { return F32Bits{value} << 16; }
  static constexpr Bits narrow(F32Bits value) {
    auto const magnitude = value & kF32Magnitude;
    auto const payload = (magnitude >> 16) & 0x7F;
    auto const nan = 0x7F80 | (payload != 0 ? payload : 0x40);  // never an infinity
    auto const rounded = magnitude > kF32Infinity ? nan : shift_to_even(magnitude, 16);
    return static_cast<Bits>((value & kF32Sign) >> 16 | rounded);
  }
};

template <>
struct Float<DType::F16> {
  using Bits = std::uint16_t;
  static constexpr std::uint32_t kInfinity = 0x7C00;
  using Small = SmallFloat<10, 15, kInfinity>;

  static constexpr F32Bits widen(Bits value) { return (F32Bits{value} & 0x8000) << 16 | Small::widen(value & 0x7FFF); }
  static constexpr Bits narrow(F32Bits value) {
    auto const magnitude = value & kF32Magnitude;
    auto const payload = (magnitude >> 13) & 0x3FF;
    auto const nan = kInfinity | (payload != 0 ? payload : 0x200);  // never an infinity
    auto const number = Small::narrow(magnitude);
    auto const limited = number < kInfinity ? number : kInfinity;
    return static_cast<Bits>((value & kF32Sign) >> 16 | (magnitude > kF32Infinity ? nan : limited));
  }
};

/// E4M3FN: no infinities, one NaN of each sign; saturates (rule 51).
template <>
struct Float<DType::F8_E4M3> {
  using Bits = std::uint8_t;
  static constexpr std::uint32_t kLargest = 0x7E;  // 448
  static constexpr std::uint32_t kNan = 0x7F;
  using Small = SmallFloat<3, 7, kNan>;

  static constexpr F32Bits widen(Bits value) { return (F32Bits{value} & 0x80) << 24 | Small::widen(value & 0x7FU); }
  static constexpr Bits narrow(F32Bits value) {
    auto const magnitude = value & kF32Magnitude;
    auto const number = Small::narrow(magnitude);
    auto const limited = number < kLargest ? number : kLargest;
    return static_cast<Bits>((value & kF32Sign) >> 24 | (magnitude > kF32Infinity ? kNan : limited));
  }
};

}  // namespace rankslice

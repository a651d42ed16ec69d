#include "transform/convert.hpp"

#include <fmt/format.h>

#include <bit>
#include <cstdint>
#include <cstring>

#include "rankslice/error.hpp"

namespace rankslice {

namespace {

constexpr std::uint32_t kF32Magnitude = 0x7FFF'FFFF;
constexpr std::uint32_t kF32Infinity = 0x7F80'0000;
constexpr std::uint32_t kF32Mantissa = 0x007F'FFFF;
constexpr std::uint32_t kF16Infinity = 0x7C00;
constexpr std::uint32_t kF16Mantissa = 0x03FF;
constexpr std::uint32_t kF16Subnormals = 0x3880'0000;  // they and zero end below this F32: 2^-14
constexpr std::uint32_t kF16Overflow = 0x4780'0000;    // 2^16; what is less may still round to infinity
constexpr std::uint32_t kBiasDifference = 127 - 15;    // of the exponents of F32 and F16

/// value / 2^shift, to nearest, ties to even.
std::uint32_t shift_to_even(std::uint32_t value, std::uint32_t shift) {
  auto const odd = (value >> shift) & 1;
  return (value + (1U << (shift - 1)) - 1 + odd) >> shift;
}

std::uint32_t bf16_to_f32(std::uint16_t value) { return std::uint32_t{value} << 16; }

std::uint32_t f16_to_f32(std::uint16_t value) {
  auto const sign = (std::uint32_t{value} & 0x8000) << 16;
  auto const exponent = (std::uint32_t{value} & kF16Infinity) >> 10;
  auto const mantissa = std::uint32_t{value} & kF16Mantissa;
  if (exponent == 0x1F) return sign | kF32Infinity | (mantissa << 13);
  if (exponent == 0) return sign | std::bit_cast<std::uint32_t>(static_cast<float>(mantissa) * 0x1p-24F);
  return sign | ((exponent + kBiasDifference) << 23) | (mantissa << 13);
}

std::uint16_t f32_to_bf16(std::uint32_t value) {
  auto const sign = (value >> 16) & 0x8000;
  auto const magnitude = value & kF32Magnitude;
  if (magnitude <= kF32Infinity) return static_cast<std::uint16_t>(sign | shift_to_even(magnitude, 16));
  auto const payload = (magnitude >> 16) & 0x7F;
  return static_cast<std::uint16_t>(sign | 0x7F80 | (payload != 0 ? payload : 0x40));  // never an infinity
}

std::uint32_t f32_to_f16_magnitude(std::uint32_t magnitude) {
  if (magnitude > kF32Infinity) {
    auto const payload = (magnitude >> 13) & kF16Mantissa;
    return kF16Infinity | (payload != 0 ? payload : 0x200);  // never an infinity
  }
  if (magnitude >= kF16Overflow) return kF16Infinity;
  if (magnitude >= kF16Subnormals) return shift_to_even(magnitude - (kBiasDifference << 23), 13);
  auto const exponent = magnitude >> 23;
  auto const significand = (magnitude & kF32Mantissa) | (kF32Mantissa + 1);
  constexpr std::uint32_t kUnit = 126;  // the significand counts 2^-24, the smallest subnormal, at this exponent
  return exponent < kUnit - 24 ? 0 : shift_to_even(significand, kUnit - exponent);
}

std::uint16_t f32_to_f16(std::uint32_t value) {
  return static_cast<std::uint16_t>(((value >> 16) & 0x8000) | f32_to_f16_magnitude(value & kF32Magnitude));
}

template <auto convert_one, typename From, typename To>
void convert_all(std::span<std::byte const> in, std::span<std::byte> out) {
  for (std::size_t i = 0; i < in.size() / sizeof(From); ++i) {
    From from;
    std::memcpy(&from, in.data() + i * sizeof(From), sizeof(From));
    To const to = convert_one(from);
    std::memcpy(out.data() + i * sizeof(To), &to, sizeof(To));
  }
}

using Convert = void (*)(std::span<std::byte const> in, std::span<std::byte> out);

Convert find_conversion(DType from, DType to) {
  if (from == DType::BF16 && to == DType::F32) return convert_all<bf16_to_f32, std::uint16_t, std::uint32_t>;
  if (from == DType::F16 && to == DType::F32) return convert_all<f16_to_f32, std::uint16_t, std::uint32_t>;
  if (from == DType::F32 && to == DType::BF16) return convert_all<f32_to_bf16, std::uint32_t, std::uint16_t>;
  if (from == DType::F32 && to == DType::F16) return convert_all<f32_to_f16, std::uint32_t, std::uint16_t>;
  return nullptr;
}

}  // namespace

bool can_convert(DType from, DType to) { return find_conversion(from, to) != nullptr; }

void convert(std::span<std::byte const> in, DType from, std::span<std::byte> out, DType to) {
  auto const conversion = find_conversion(from, to);
  if (conversion == nullptr) throw PlanError(fmt::format("{} cannot be converted to {}", name(from), name(to)));
  conversion(in, out);
}

}  // namespace rankslice

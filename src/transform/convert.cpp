#include "transform/convert.hpp"

#include <fmt/format.h>

#include <cstring>

#include "rankslice/error.hpp"

#include "transform/float_formats.hpp"

namespace rankslice {

namespace {

using Convert = void (*)(std::span<std::byte const> in, std::span<std::byte> out);

template <DType from, DType to>
void convert_all(std::span<std::byte const> in, std::span<std::byte> out) {
  using From = typename Float<from>::Bits;
  using To = typename Float<to>::Bits;
  for (std::size_t i = 0; i < in.size() / sizeof(From); ++i) {
    From value;
    std::memcpy(&value, in.data() + i * sizeof(From), sizeof(From));
    To const converted = Float<to>::narrow(Float<from>::widen(value));
    std::memcpy(out.data() + i * sizeof(To), &converted, sizeof(To));
  }
}

template <DType from>
Convert conversion_from(DType to) {
  switch (to) {
    case DType::BF16:
      return convert_all<from, DType::BF16>;
    case DType::F16:
      return convert_all<from, DType::F16>;
    case DType::F32:
      return convert_all<from, DType::F32>;
    case DType::F8_E4M3:
      return convert_all<from, DType::F8_E4M3>;
    default:
      return nullptr;
  }
}

Convert find_conversion(DType from, DType to) {
  if (from == to) return nullptr;
  switch (from) {
    case DType::BF16:
      return conversion_from<DType::BF16>(to);
    case DType::F16:
      return conversion_from<DType::F16>(to);
    case DType::F32:
      return conversion_from<DType::F32>(to);
    case DType::F8_E4M3:
      return conversion_from<DType::F8_E4M3>(to);
    default:
      return nullptr;
  }
}

}  // namespace

void convert(std::span<std::byte const> in, DType from, std::span<std::byte> out, DType to) {
  auto const conversion = find_conversion(from, to);
  if (conversion == nullptr) throw PlanError(fmt::format("{} cannot be converted to {}", name(from), name(to)));
  conversion(in, out);
}

}  // namespace rankslice

#include "rankslice/dtype.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>

#include "rankslice/error.hpp"

namespace rankslice {

namespace {

struct DTypeInfo {
  DType dtype;
  std::uint32_t bits;
  std::string_view name;
};

// In the order of the enumeration, so that a dtype is its own index.
constexpr std::array kDTypes{
    DTypeInfo{DType::F4, 4, "F4"},
    DTypeInfo{DType::F6_E2M3, 6, "F6_E2M3"},
    DTypeInfo{DType::F6_E3M2, 6, "F6_E3M2"},
    DTypeInfo{DType::BOOL, 8, "BOOL"},
    DTypeInfo{DType::U8, 8, "U8"},
    DTypeInfo{DType::I8, 8, "I8"},
    DTypeInfo{DType::F8_E5M2, 8, "F8_E5M2"},
    DTypeInfo{DType::F8_E4M3, 8, "F8_E4M3"},
    DTypeInfo{DType::F8_E8M0, 8, "F8_E8M0"},
    DTypeInfo{DType::F8_E4M3FNUZ, 8, "F8_E4M3FNUZ"},
    DTypeInfo{DType::F8_E5M2FNUZ, 8, "F8_E5M2FNUZ"},
    DTypeInfo{DType::I16, 16, "I16"},
    DTypeInfo{DType::U16, 16, "U16"},
    DTypeInfo{DType::F16, 16, "F16"},
    DTypeInfo{DType::BF16, 16, "BF16"},
    DTypeInfo{DType::I32, 32, "I32"},
    DTypeInfo{DType::U32, 32, "U32"},
    DTypeInfo{DType::F32, 32, "F32"},
    DTypeInfo{DType::C64, 64, "C64"},
    DTypeInfo{DType::F64, 64, "F64"},
    DTypeInfo{DType::I64, 64, "I64"},
    DTypeInfo{DType::U64, 64, "U64"},
};

constexpr bool in_order() {
  for (std::size_t i = 0; i < kDTypes.size(); ++i) {
    if (static_cast<std::size_t>(kDTypes[i].dtype) != i) return false;
  }
  return true;
}
static_assert(in_order());

DTypeInfo const& info(DType dtype) { return kDTypes[static_cast<std::size_t>(dtype)]; }

}  // namespace

std::uint32_t bits(DType dtype) { return info(dtype).bits; }

bool sub_byte(DType dtype) { return bits(dtype) < 8; }

std::uint64_t element_bytes(DType dtype) {
  if (sub_byte(dtype)) throw PlanError(std::string(name(dtype)) + " has no whole number of bytes per element");
  return bits(dtype) / 8;
}

std::string_view name(DType dtype) { return info(dtype).name; }

std::optional<DType> parse_dtype(std::string_view name) {
  auto const found = std::ranges::find(kDTypes, name, &DTypeInfo::name);
  if (found == kDTypes.end()) return std::nullopt;
  return found->dtype;
}

}  // namespace rankslice

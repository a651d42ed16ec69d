#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace rankslice {

/// Every element type of the safetensors format.
enum class DType : std::uint8_t {
  F4,
  F6_E2M3,
  F6_E3M2,
  BOOL,
  U8,
  I8,
  F8_E5M2,
  F8_E4M3,
  F8_E8M0,
  F8_E4M3FNUZ,
  F8_E5M2FNUZ,
  I16,
  U16,
  F16,
  BF16,
  I32,
  U32,
  F32,
  C64,
  F64,
  I64,
  U64,
};

/// Size of one element in bits: 4, 6, 8, 16, 32 or 64.
[[nodiscard]] std::uint32_t bits(DType dtype);

/// Whether an element is less than a byte, so that tensors are moved and digested as bytes.
[[nodiscard]] bool sub_byte(DType dtype);

/// Size of one element in bytes. @throws PlanError for the sub-byte types.
[[nodiscard]] std::uint64_t element_bytes(DType dtype);

/// The name in a safetensors header, `BF16` for example.
[[nodiscard]] std::string_view name(DType dtype);

/// The inverse of `name`; nothing for an unknown name.
[[nodiscard]] std::optional<DType> parse_dtype(std::string_view name);

}  // namespace rankslice

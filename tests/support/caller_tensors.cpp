#include "support/caller_tensors.hpp"

#include <bit>
#include <cstring>
#include <vector>

namespace rankslice::test {

namespace {

/// A BF16 is the upper half of an F32.
std::vector<float> doubled(std::span<std::byte const> bytes, std::size_t unit) {
  std::vector<float> values;
  for (std::size_t i = 0; i < bytes.size(); i += unit) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, bytes.data() + i, unit);
    values.push_back(2 * std::bit_cast<float>(unit == 2 ? bits << 16 : bits));
  }
  return values;
}

/// Memory that its owner lends: it must stand as long as the state dict.
Buffer in_own_memory(std::span<std::byte const> bytes) {
  auto const memory = std::make_shared<std::vector<std::byte>>(bytes.begin(), bytes.end());
  return {.data = std::shared_ptr<std::byte>(memory, memory->data()), .bytes = bytes.size()};
}

}  // namespace

std::map<std::string, LocalTensor> doubled_as_f32(StateDict const& state) {
  std::map<std::string, LocalTensor> tensors;
  for (auto const& [fqn, tensor] : state.tensors) {
    auto const dtype = tensor.parameter.dtype;
    auto const bytes = tensor.data.span();
    auto const is_float = dtype == DType::BF16 || dtype == DType::F32;
    auto const values = is_float ? doubled(bytes, element_bytes(dtype)) : std::vector<float>();
    tensors[fqn] = {.dtype = is_float ? DType::F32 : dtype,
                    .global_shape = tensor.parameter.shape,
                    .data = in_own_memory(is_float ? std::as_bytes(std::span(values)) : bytes)};
  }
  return tensors;
}

}  // namespace rankslice::test

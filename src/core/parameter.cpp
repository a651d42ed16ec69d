#include "rankslice/parameter.hpp"

namespace rankslice {

namespace {

bool sub_byte(DType dtype) { return bits(dtype) < 8; }

}  // namespace

std::uint64_t Parameter::part_count() const {
  if (stacked_experts) return hf_shape[0];
  return sub_byte(hf_dtype) ? byte_size(hf_dtype, hf_shape) : element_count(hf_shape);
}

std::uint64_t Parameter::part_bytes(Form form) const {
  if (!stacked_experts) return sub_byte(hf_dtype) ? 1 : element_bytes(dtype_in(form));
  auto const& global = shape_in(form);
  return byte_size(dtype_in(form), {global.begin() + 1, global.end()});
}

}  // namespace rankslice

#include "transform/parameter_digest.hpp"

#include "transform/convert.hpp"

namespace rankslice {

ParameterDigest::ParameterDigest(Parameter const& parameter)
    : parameter_(parameter), source_(parameter.hf_dtype, parameter.hf_shape) {
  if (parameter.converted()) stored_.emplace(parameter.dtype, parameter.hf_shape);
}

void ParameterDigest::add(Form form, std::uint64_t first_element, std::span<std::byte const> bytes, Digests& digests,
                          std::size_t index) {
  if (form == Form::native && parameter_.layout == Layout::swapped) {
    source_.add_swapped(first_element, bytes, digests.source.of(index));
    return;
  }
  if (!stored_) {
    source_.add(first_element, bytes, digests.source.of(index));
    return;
  }
  auto const other = form == Form::hf ? Form::native : Form::hf;
  auto const from = parameter_.dtype_in(form);
  auto const to = parameter_.dtype_in(other);
  converted_.resize(bytes.size() / element_bytes(from) * element_bytes(to));
  convert(bytes, from, converted_, to);
  auto const in_source = form == Form::hf ? bytes : std::span<std::byte const>(converted_);
  auto const in_stored = form == Form::hf ? std::span<std::byte const>(converted_) : bytes;
  source_.add(first_element, in_source, digests.source.of(index));
  stored_->add(first_element, in_stored, digests.stored.of(index));
}

}  // namespace rankslice

#include "transform/parameter_digest.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "rankslice/error.hpp"

#include "transform/convert.hpp"

namespace rankslice {

ParameterDigest::ParameterDigest(Model const& model, Parameter const& parameter)
    : model_(model),
      parameter_(parameter),
      source_(parameter.hf_dtype, model.tensors[parameter.tensors.front()].shape) {
  if (parameter.converted()) stored_.emplace(parameter.dtype, model.tensors[parameter.tensors.front()].shape);
}

void ParameterDigest::add_stored(std::uint32_t tensor, std::uint64_t first_element, std::span<std::byte const> bytes,
                                 Digests& digests) {
  if (stored_) return add_converted(Form::hf, first_element, bytes, digests);
  source_.add(first_element, bytes, digests.source.of(tensor));
}

void ParameterDigest::add_native(std::uint64_t first_element, std::span<std::byte const> bytes, Digests& digests) {
  if (stored_) return add_converted(Form::native, first_element, bytes, digests);
  auto const& tensors = parameter_.tensors;
  if (tensors.size() == 1) return add_run(tensors.front(), first_element, bytes, digests);
  add_split(first_element, bytes, digests);
}

/// Of split experts: every row of the native tensor runs through one tensor after the other.
void ParameterDigest::add_split(std::uint64_t first_element, std::span<std::byte const> bytes, Digests& digests) {
  auto const& tensors = parameter_.tensors;
  auto const columns = parameter_.columns();
  auto const rows = parameter_.row_count();
  auto const unit = parameter_.unit_bytes(Form::native);
  auto const elements = bytes.size() / unit;
  auto const total = parameter_.part_count() * rows * columns;
  if (first_element > total || elements > total - first_element) {
    throw PlanError(fmt::format("{}: a digest of {} elements from element {} on, of a tensor that has {}",
                                parameter_.fqn, elements, first_element, total),
                    parameter_.fqn);
  }
  auto const per_expert = tensors.size() / parameter_.part_count();
  while (!bytes.empty()) {
    auto const column = first_element % columns;
    auto const row = first_element / columns % rows;
    auto const expert = first_element / columns / rows;
    auto const of_expert = std::span(tensors).subspan(expert * per_expert, per_expert);
    auto const holds = [&](std::uint32_t tensor) { return column < model_.tensors[tensor].columns.end; };
    auto const tensor = *std::ranges::find_if(of_expert, holds);
    auto const& held = model_.tensors[tensor].columns;
    auto const count = std::min(held.end - column, bytes.size() / unit);
    add_run(tensor, row * held.size() + column - held.begin, bytes.first(count * unit), digests);
    first_element += count;
    bytes = bytes.subspan(count * unit);
  }
}

/// A run in native order, from `first_element` of the tensor's own box on.
void ParameterDigest::add_run(std::uint32_t tensor, std::uint64_t first_element, std::span<std::byte const> bytes,
                              Digests& digests) {
  if (parameter_.layout == Layout::swapped) {
    source_.add_swapped(first_element, bytes, digests.source.of(tensor));
  } else {
    source_.add(first_element, bytes, digests.source.of(tensor));
  }
}

/// Of a parameter that is one tensor with the same axes in both forms.
void ParameterDigest::add_converted(Form form, std::uint64_t first_element, std::span<std::byte const> bytes,
                                    Digests& digests) {
  auto const tensor = parameter_.tensors.front();
  auto const other = form == Form::hf ? Form::native : Form::hf;
  auto const from = parameter_.dtype_in(form);
  auto const to = parameter_.dtype_in(other);
  converted_.resize(bytes.size() / element_bytes(from) * element_bytes(to));
  convert(bytes, from, converted_, to);
  auto const in_source = form == Form::hf ? bytes : std::span<std::byte const>(converted_);
  auto const in_stored = form == Form::hf ? std::span<std::byte const>(converted_) : bytes;
  source_.add(first_element, in_source, digests.source.of(tensor));
  stored_->add(first_element, in_stored, digests.stored.of(tensor));
}

}  // namespace rankslice

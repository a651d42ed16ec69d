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
  auto const& first = model.tensors[parameter.tensors.front()];
  if (parameter.converted()) converted_.emplace(parameter.dtype, first.shape);
  if (first.scales) scales_.emplace(model.tensors[*first.scales].dtype, model.tensors[*first.scales].shape);
}

void ParameterDigest::add_stored(std::uint32_t tensor, std::uint64_t first_element, std::span<std::byte const> bytes,
                                 Digests& digests) {
  source_.add(first_element, bytes, digests.source.of(tensor));
}

void ParameterDigest::add_converted(std::uint32_t tensor, std::uint64_t first_element,
                                    std::span<std::byte const> values, Digests& digests) {
  converted_.value().add(first_element, values, digests.stored.of(tensor));
}

void ParameterDigest::add_scales(std::uint32_t tensor, std::uint64_t first_element, std::span<std::byte const> bytes,
                                 Digests& digests) {
  scales_.value().add(first_element, bytes, digests.source.of(model_.tensors[tensor].scales.value()));
}

void ParameterDigest::add_native(std::uint64_t first_element, std::span<std::byte const> bytes, Digests& digests) {
  auto const narrow = parameter_.unit_bytes(Form::hf);
  if (!converted_) return add_native({source_, digests.source, narrow}, first_element, bytes);
  auto const unit = parameter_.unit_bytes(Form::native);
  add_native({*converted_, digests.stored, unit}, first_element, bytes);
  if (!parameter_.invertible()) return;
  narrowed_.resize(bytes.size() / unit * narrow);
  convert(bytes, parameter_.dtype, narrowed_, parameter_.hf_dtype);
  add_native({source_, digests.source, narrow}, first_element, narrowed_);
}

/// Of split experts every row of the native tensor runs through one tensor after the other.
void ParameterDigest::add_native(Sink const& sink, std::uint64_t first_element,
                                 std::span<std::byte const> bytes) const {
  auto const& tensors = parameter_.tensors;
  if (tensors.size() == 1) return add_run(sink, tensors.front(), first_element, bytes);
  auto const columns = parameter_.columns();
  auto const rows = parameter_.row_count();
  auto const elements = bytes.size() / sink.unit;
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
    auto const count = std::min(held.end - column, bytes.size() / sink.unit);
    add_run(sink, tensor, row * held.size() + column - held.begin, bytes.first(count * sink.unit));
    first_element += count;
    bytes = bytes.subspan(count * sink.unit);
  }
}

/// A run in native order, from `first_element` of the tensor's own box on.
void ParameterDigest::add_run(Sink const& sink, std::uint32_t tensor, std::uint64_t first_element,
                              std::span<std::byte const> bytes) const {
  if (parameter_.layout == Layout::swapped) {
    sink.digest.add_swapped(first_element, bytes, sink.table.of(tensor));
  } else {
    sink.digest.add(first_element, bytes, sink.table.of(tensor));
  }
}

}  // namespace rankslice

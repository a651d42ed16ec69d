#include "native_source.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/literals.hpp"
#include "state/consistency.hpp"

namespace rankslice {

HeldTensors::HeldTensors(StateDict const& state) : by_index_(state.source->parameters.size()) {
  for (auto const& [fqn, tensor] : state.tensors) by_index_.at(tensor.index) = &tensor;
  for (std::size_t i = 0; i < by_index_.size(); ++i) {
    auto const& parameter = state.source->parameters[i];
    auto const* const tensor = by_index_[i];
    if (tensor == nullptr) {
      throw PlanError(fmt::format("{}: missing from the state dict; a whole checkpoint needs every tensor of {}",
                                  parameter.fqn, state.source->path),
                      parameter.fqn);
    }
    require_consistent(*tensor, *state.source);
  }
}

void HeldTensors::for_each_piece(PlannedPart const& wanted,
                                 std::function<void(Range part, std::byte const* native)> const& use) {
  auto const& tensor = *by_index_[wanted.parameter];
  auto const held = tensor.part();
  if (wanted.part.begin < held.begin || held.end < wanted.part.end) {
    throw PlanError(fmt::format("{}: this rank holds [{}, {}), not [{}, {})", tensor.parameter.fqn, held.begin,
                                held.end, wanted.part.begin, wanted.part.end),
                    tensor.parameter.fqn);
  }
  auto const skipped = (wanted.part.begin - held.begin) * tensor.parameter.part_bytes(Form::native);
  use(wanted.part, tensor.data.data.get() + skipped);
}

StreamedTensors::StreamedTensors(Storage const& storage, std::vector<Parameter> const& parameters)
    : parameters_(parameters), reader_(storage, parameters), read_(parameters) {}

void StreamedTensors::for_each_piece(PlannedPart const& wanted,
                                     std::function<void(Range part, std::byte const* native)> const& use) {
  auto const& parameter = parameters_[wanted.parameter];
  auto const unit = parameter.part_bytes(Form::native);
  auto const step = parameter.stacked_experts ? 1 : 4_MiB / unit;
  ParameterDigest digest(parameter);
  DigestSink const sink{.digest = &digest, .sums = &read_, .index = wanted.parameter};
  for (auto begin = wanted.part.begin; begin < wanted.part.end; begin += step) {
    Range const piece{begin, std::min(begin + step, wanted.part.end)};
    buffer_.resize(std::max<std::size_t>(buffer_.size(), piece.size() * unit));
    reader_.for_each_stretch({wanted.parameter, piece}, [&](Range part, FileReader& file, TensorPlace place) {
      transfer_.read(parameter, part, file, place, buffer_.data() + (part.begin - begin) * unit, sink);
    });
    use(piece, buffer_.data());
  }
}

}  // namespace rankslice

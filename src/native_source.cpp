#include "native_source.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/literals.hpp"
#include "state/consistency.hpp"

namespace rankslice {

HeldTensors::HeldTensors(StateDict const& state) {
  require_consistent(state);
  auto const& parameters = state.source->model.parameters;
  by_index_.resize(parameters.size());
  for (auto const& [fqn, tensor] : state.tensors) by_index_[tensor.index] = &tensor;
  auto const missing = std::ranges::find(by_index_, nullptr);
  if (missing == by_index_.end()) return;
  auto const& fqn = parameters[static_cast<std::size_t>(missing - by_index_.begin())].fqn;
  throw PlanError(fmt::format("{}: missing from the state dict; a whole checkpoint needs every tensor of {}", fqn,
                              state.source->path),
                  fqn);
}

void HeldTensors::for_each_box(PlannedSlice const& wanted, BoxStep const& use) {
  auto const& tensor = *by_index_[wanted.parameter];
  auto const held = tensor.slice();
  if (intersection(held, wanted.slice) != wanted.slice) {
    throw PlanError(
        fmt::format("{}: this rank holds {}, not {}", tensor.parameter.fqn, to_string(held), to_string(wanted.slice)),
        tensor.parameter.fqn);
  }
  use(wanted.slice, {.data = tensor.data.data.get(), .slice = held});
}

StreamedTensors::StreamedTensors(Storage const& storage, Model const& model)
    : model_(model), reader_(storage, model), transfer_(model, storage.form), read_(model) {}

void StreamedTensors::for_each_box(PlannedSlice const& wanted, BoxStep const& use) {
  auto const& parameter = model_.parameters[wanted.parameter];
  auto const step = parameter.stacked_experts ? 1 : 4_MiB / parameter.unit_bytes(Form::native);
  ParameterDigest digest(model_, parameter);
  DigestSink const sink{.digest = &digest, .sums = &read_};
  auto const& part = wanted.slice.part;
  for (auto begin = part.begin; begin < part.end; begin += step) {
    Slice const slice{.part = {begin, std::min(begin + step, part.end)}, .rows = wanted.slice.rows};
    buffer_.resize(std::max<std::size_t>(buffer_.size(), parameter.bytes(slice, Form::native)));
    NativeBox<std::byte> const box{.data = buffer_.data(), .slice = slice};
    reader_.for_each_piece({wanted.parameter, slice},
                           [&](StoredPiece const& piece, Slice const& of_piece, FileReader& file) {
                             transfer_.read(piece, of_piece, file, box, sink);
                           });
    use(slice, {.data = box.data, .slice = slice});
  }
}

}  // namespace rankslice

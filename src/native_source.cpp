#include "native_source.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/literals.hpp"
#include "core/rows_before.hpp"
#include "plan/read_plan.hpp"
#include "read_batches.hpp"
#include "state/consistency.hpp"

namespace rankslice {

namespace {

/// Call step(slice) for the parts of a slice that are small enough for a buffer: its experts one by one, or a few MiB
/// of a dense tensor.
template <typename Step>
void for_each_block(Parameter const& parameter, Slice const& slice, Step const& step) {
  auto const most = parameter.stacked_experts ? 1 : 4_MiB / parameter.unit_bytes(Form::native);
  for (auto begin = slice.part.begin; begin < slice.part.end; begin += most) {
    step(Slice{.part = {begin, std::min(begin + most, slice.part.end)}, .rows = slice.rows});
  }
}

/// What is read of a storage to stream some slices block by block, in that order; block scales of a dense tensor once.
std::vector<Extent> streamed_extents(Storage const& storage, Model const& model, std::span<PlannedSlice const> slices) {
  std::vector<PlannedPiece> pieces;
  auto const add = [&](std::uint32_t parameter, Slice const& slice) {
    for (auto const& located : locate(storage, model, {parameter, slice})) pieces.push_back({.located = located});
  };
  for (auto const& [index, slice] : slices) {
    if (!model.parameters[index].stacked_experts) {
      add(index, slice);
      continue;
    }
    for_each_block(model.parameters[index], slice, [&](Slice const& expert) { add(index, expert); });
  }
  return extents_read(storage, model, pieces);
}

}  // namespace

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

/// @throws PlanError when this rank does not hold all of a slice.
ShardedTensor const& HeldTensors::holding(PlannedSlice const& wanted) const {
  auto const& tensor = *by_index_[wanted.parameter];
  auto const held = tensor.slice();
  if (intersection(held, wanted.slice) == wanted.slice) return tensor;
  throw PlanError(
      fmt::format("{}: this rank holds {}, not {}", tensor.parameter.fqn, to_string(held), to_string(wanted.slice)),
      tensor.parameter.fqn);
}

std::span<std::byte const> HeldTensors::kept_bytes(PlannedSlice const& wanted, bool on_device) const {
  auto const& tensor = holding(wanted);
  if (tensor.data.device && !on_device) return {};
  return {tensor.data.data.get() + bytes_before(tensor.parameter, tensor.slice(), wanted.slice),
          tensor.parameter.bytes(wanted.slice, Form::native)};
}

void HeldTensors::for_each_box(PlannedSlice const& wanted, BoxStep const& use) {
  auto const& tensor = holding(wanted);
  auto const held = tensor.slice();
  if (!tensor.data.device) return use(wanted.slice, {.data = tensor.data.data.get(), .slice = held});
  auto const& parameter = tensor.parameter;
  for_each_block(parameter, wanted.slice, [&](Slice const& slice) {
    buffer_.resize(parameter.bytes(slice, Form::native));
    tensor.data.device->download(tensor.data.data.get() + bytes_before(parameter, held, slice), buffer_);
    use(slice, {.data = buffer_.data(), .slice = slice});
  });
}

StreamedTensors::StreamedTensors(Storage const& storage, Model const& model, ReadOptions const& how, bool swapped)
    : storage_(storage), model_(model), how_(how), swapped_(swapped), transfer_(model, storage.form), read_(model) {
  read_.without_codes = storage.form == Form::native;
}

void StreamedTensors::expect(std::vector<PlannedSlice> const& slices) {
  check_unchanged();
  expected_ = slices;
  batches_ = in_batches(expected_, [this](PlannedSlice const& item) {
    return model_.parameters[item.parameter].bytes(item.slice, Form::native);
  });
  next_ = 0;
  still_to_come_ = 0;
  reader_.reset();
}

/// For a block of so many bytes.
StorageReader& StreamedTensors::reader_for(std::uint64_t bytes) {
  if (!reader_ || (still_to_come_ == 0 && next_ < batches_.size())) next_batch();
  still_to_come_ -= std::min(still_to_come_, bytes);
  return *reader_;
}

void StreamedTensors::next_batch() {
  check_unchanged();
  ExpectedReads reads{.how = how_};
  if (next_ < batches_.size()) {
    auto const batch = batches_[next_++];
    auto const slices = std::span(expected_).subspan(batch.begin, batch.size());
    reads.extents = streamed_extents(storage_, model_, slices);
    still_to_come_ = plan_bytes(model_, {slices.begin(), slices.end()}, Form::native);
  }
  reader_.emplace(storage_, model_, std::move(reads));
}

void StreamedTensors::check_unchanged() const {
  if (reader_) reader_->check_unchanged();
}

void StreamedTensors::for_each_box(PlannedSlice const& wanted, BoxStep const& use) {
  auto const& parameter = model_.parameters[wanted.parameter];
  auto const swapped = swapped_ && parameter.layout == Layout::swapped && storage_.form == Form::hf;
  ParameterDigest digest(model_, parameter);
  DigestSink const sink{.digest = &digest, .sums = &read_};
  for_each_block(parameter, wanted.slice, [&](Slice const& slice) {
    auto const bytes = parameter.bytes(slice, Form::native);
    buffer_.resize(std::max<std::size_t>(buffer_.size(), bytes));
    NativeBox<std::byte> const box{.data = buffer_.data(), .slice = slice, .swapped = swapped};
    auto& reader = reader_for(bytes);
    auto const is_last = still_to_come_ == 0;  // of its batch
    reader.for_each_piece({wanted.parameter, slice},
                          [&](StoredPiece const& piece, Slice const& of_piece, PieceFiles const& files) {
                            transfer_.read(piece, of_piece, files, box, sink);
                          });
    if (is_last) reader.finish();
    use(slice, {.data = box.data, .slice = slice, .swapped = swapped});
  });
}

DigestedTensors::DigestedTensors(NativeSource& from, Model const& model) : from_(from), model_(model), given_(model) {}

void DigestedTensors::for_each_box(PlannedSlice const& wanted, BoxStep const& use) {
  auto const& parameter = model_.parameters[wanted.parameter];
  ParameterDigest digest(model_, parameter);
  from_.for_each_box(wanted, [&](Slice const& slice, NativeBox<std::byte const> const& box) {
    for_each_run(parameter, slice, [&](Slice const& run) {
      auto const* const data = box.data + bytes_before(parameter, box.slice, run);
      digest.add_native(first_element(parameter, run), {data, parameter.bytes(run, Form::native)}, given_);
    });
    use(slice, box);
  });
}

}  // namespace rankslice

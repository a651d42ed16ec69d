#include "transform/device_digest.hpp"

#include <algorithm>

#include "core/digest_factors.hpp"

namespace rankslice {

namespace {

/// A dense tensor as matrices of elements, one for each entry: `digest.md`.
struct Matrices {
  std::uint64_t rows = 1, columns = 1;
  explicit Matrices(Parameter const& parameter) {
    auto const& shape = parameter.shape;
    if (sub_byte(parameter.dtype)) {
      columns = parameter.part_count();
      return;
    }
    for (std::size_t axis = shape.size() >= 3 ? 1 : 0; axis + 1 < shape.size(); ++axis) rows *= shape[axis];
    if (!shape.empty()) columns = shape.back();
  }
};

/// A run of elements, as a part of a row, rows up to the end of an entry, whole entries, and the same backwards.
std::vector<TensorBox> boxes_of_run(Parameter const& parameter, Range run, std::byte const* data) {
  auto const unit = parameter.unit_bytes(Form::native);
  auto const [rows, columns] = Matrices(parameter);
  std::vector<TensorBox> boxes;
  while (!run.empty()) {
    auto const column = run.begin % columns;
    auto const row = run.begin / columns % rows;
    DigestBox box{.data = data,
                  .element_bytes = unit,
                  .entries = 1,
                  .lines = 1,
                  .length = columns,
                  .entry_stride = rows * columns,
                  .line_stride = columns,
                  .first_line = row,
                  .first_position = column};
    if (column != 0 || run.size() < columns) {
      box.length = std::min(run.size(), columns - column);
    } else if (row != 0 || run.size() < rows * columns) {
      box.lines = std::min(run.size() / columns, rows - row);
    } else {
      box.lines = rows;
      box.entries = run.size() / (rows * columns);
    }
    boxes.push_back({.tensor = parameter.tensors.front(), .first_entry = run.begin / columns / rows, .box = box});
    auto const elements = box.entries * box.lines * box.length;
    run.begin += elements;
    data += elements * unit;
  }
  return boxes;
}

std::vector<TensorBox> boxes_of_experts(Model const& model, Parameter const& parameter, Slice const& slice,
                                        std::byte const* data) {
  auto const unit = parameter.unit_bytes(Form::native);
  auto const columns = parameter.columns();
  std::vector<TensorBox> boxes;
  for (auto const index : parameter.tensors) {
    auto const& tensor = model.tensors[index];
    auto const first = std::max(slice.part.begin, tensor.experts.begin);
    auto const end = std::min(slice.part.end, tensor.experts.end);
    if (first >= end) continue;
    auto const before = (first - slice.part.begin) * slice.rows.size() * columns + tensor.columns.begin;
    boxes.push_back({.tensor = index,
                     .first_entry = first - tensor.experts.begin,
                     .box = {.data = data + before * unit,
                             .element_bytes = unit,
                             .entries = end - first,
                             .lines = slice.rows.size(),
                             .length = tensor.columns.size(),
                             .entry_stride = slice.rows.size() * columns,
                             .line_stride = columns,
                             .first_line = slice.rows.begin,
                             .first_position = 0,
                             .swapped = parameter.layout == Layout::swapped}});
  }
  return boxes;
}

}  // namespace

std::vector<TensorBox> boxes_of(Model const& model, Parameter const& parameter, Slice const& slice,
                                std::byte const* data) {
  if (slice.empty()) return {};
  return parameter.stacked_experts ? boxes_of_experts(model, parameter, slice, data)
                                   : boxes_of_run(parameter, slice.part, data);
}

void add_native_on_device(Model const& model, Parameter const& parameter, Slice const& slice, Buffer const& memory,
                          Digests& digests) {
  std::vector<DigestBox> boxes;
  std::uint64_t entries = 0;
  auto const of_tensors = boxes_of(model, parameter, slice, memory.data.get());
  for (auto const& of_tensor : of_tensors) {
    boxes.push_back(of_tensor.box);
    entries += of_tensor.box.entries;
  }
  std::vector<std::uint64_t> sums(entries);
  memory.device->digest(boxes, sums);
  auto const* sum = sums.data();
  for (auto const& [tensor, first_entry, box] : of_tensors) {
    auto const d = (parameter.converted() ? digests.stored : digests.source).of(tensor);
    for (auto e = first_entry; e < first_entry + box.entries; ++e) d[e] += expert_factor(e) * *sum++;
  }
}

}  // namespace rankslice

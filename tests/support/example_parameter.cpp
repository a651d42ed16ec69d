#include "support/example_parameter.hpp"

#include <algorithm>
#include <cstring>

#include "support/naive_digest.hpp"

namespace rankslice::test {

namespace {

constexpr std::uint64_t kBetween = 13;

/// BF16 as F32: the same bits with zeros below.
Bytes widened(Bytes const& bf16) {
  Bytes f32(2 * bf16.size());
  for (std::size_t i = 0; i < bf16.size(); ++i) f32[i / 2 * 4 + 2 + i % 2] = bf16[i];
  return f32;
}

ExampleParameter of_one_tensor(DType dtype, Shape const& hf_shape, Shape const& shape, Layout layout, bool stacked) {
  auto const bytes = random_bytes(byte_size(dtype, hf_shape), element_count(hf_shape));
  ExampleParameter example;
  example.model.tensors = {{.key = "hf.example", .dtype = dtype, .shape = hf_shape, .parameter = 0}};
  if (stacked) {
    example.model.tensors.front().experts = {0, shape[0]};
    example.model.tensors.front().columns = {0, shape[2]};
  }
  example.model.parameters = {{.fqn = "native.example",
                               .hf_dtype = dtype,
                               .dtype = dtype,
                               .shape = shape,
                               .layout = layout,
                               .stacked_experts = stacked,
                               .tensors = {0}}};
  example.hf = {bytes};
  example.native = bytes;
  return example;
}

void append_random(Bytes& file) {
  auto const between = random_bytes(kBetween, file.size());
  file.insert(file.end(), between.begin(), between.end());
}

void append_piece(ExampleFile& file, std::uint32_t tensor, Slice const& slice, Bytes const& bytes) {
  append_random(file.bytes);
  auto const begin = file.bytes.size();
  file.bytes.insert(file.bytes.end(), bytes.begin(), bytes.end());
  file.pieces.push_back(
      {.parameter = 0, .tensor = tensor, .slice = slice, .extent = {.file = 0, .bytes = {begin, file.bytes.size()}}});
}

}  // namespace

std::uint64_t ExampleParameter::element_bytes(Form form) const {
  auto const type = form == Form::hf ? parameter().hf_dtype : parameter().dtype;
  return sub_byte(type) ? 1 : bits(type) / 8;
}

Slice ExampleParameter::whole() const {
  if (parameter().stacked_experts) return {.part = {0, parameter().shape[0]}, .rows = {0, parameter().shape[1]}};
  return {.part = {0, native.size() / element_bytes(Form::native)}, .rows = {0, 1}};
}

Bytes ExampleParameter::native_of(Slice const& slice) const {
  auto const size = element_bytes(Form::native);
  auto const at = [&](std::uint64_t element) { return native.begin() + std::ptrdiff_t(element * size); };
  if (!parameter().stacked_experts) return {at(slice.part.begin), at(slice.part.end)};
  Bytes bytes;
  auto const rows = parameter().shape[1], columns = parameter().shape[2];
  for (auto part = slice.part.begin; part < slice.part.end; ++part) {
    for (auto i = slice.rows.begin; i < slice.rows.end; ++i) {
      bytes.insert(bytes.end(), at((part * rows + i) * columns), at((part * rows + i + 1) * columns));
    }
  }
  return bytes;
}

std::vector<Range> ExampleParameter::hf_elements(std::uint32_t tensor, Slice const& slice) const {
  if (!parameter().stacked_experts) return {slice.part};
  auto const& of = model.tensors[tensor];
  auto const rows = of.shape[of.shape.size() - 2];
  auto const columns = of.shape.back();
  std::vector<Range> elements;
  for (auto expert = slice.part.begin; expert < slice.part.end; ++expert) {
    if (expert < of.experts.begin || of.experts.end <= expert) continue;
    for (std::uint64_t row = 0; row < rows; ++row) {
      auto const first = ((expert - of.experts.begin) * rows + row) * columns;
      if (parameter().layout == Layout::swapped) {  // native rows are columns here
        elements.push_back({first + slice.rows.begin, first + slice.rows.end});
      } else if (slice.rows.begin <= row && row < slice.rows.end) {
        elements.push_back({first, first + columns});
      }
    }
  }
  return elements;
}

ExampleDigests ExampleParameter::digests(Slice const& slice) const {
  ExampleDigests digests;
  auto const digest = [&](std::uint32_t tensor, Bytes const& bytes, std::uint64_t size) {
    auto const shape = sub_byte(parameter().hf_dtype) ? Shape{bytes.size()} : model.tensors[tensor].shape;
    auto sums = naive_digest(size, shape, bytes, {0, 0});
    for (auto const& elements : hf_elements(tensor, slice)) {
      auto const more = naive_digest(size, shape, bytes, elements);
      std::ranges::transform(sums, more, sums.begin(), std::plus<>());
    }
    return sums;
  };
  auto const converts = parameter().dtype != parameter().hf_dtype;
  for (auto const tensor : parameter().tensors) {
    auto const& sums = digests.source.emplace_back(digest(tensor, hf[tensor], element_bytes(Form::hf)));
    digests.stored.push_back(converts ? digest(tensor, native, element_bytes(Form::native))
                                      : std::vector<std::uint64_t>(sums.size()));
  }
  return digests;
}

ExampleParameter dense(DType dtype, Shape const& shape) {
  return of_one_tensor(dtype, shape, shape, Layout::same, false);
}

ExampleParameter converted(Shape const& shape) {
  auto example = dense(DType::BF16, shape);
  example.model.parameters.front().dtype = DType::F32;
  example.native = widened(example.hf.front());
  return example;
}

ExampleParameter swapped(DType dtype, Shape const& hf_shape) {
  auto example = of_one_tensor(dtype, hf_shape, {hf_shape[0], hf_shape[2], hf_shape[1]}, Layout::swapped, true);
  example.native = swap_axes(example.hf.front(), hf_shape, bits(dtype) / 8);
  return example;
}

ExampleParameter stacked_as_is(DType dtype, Shape const& shape) {
  return of_one_tensor(dtype, shape, shape, Layout::same, true);
}

ExampleParameter split(DType dtype, std::uint64_t experts, std::uint64_t matrices, Shape const& matrix) {
  auto const rows = matrix[0], columns = matrix[1], size = std::uint64_t{bits(dtype)} / 8;
  auto example = of_one_tensor(dtype, {experts, columns, matrices * rows}, {experts, columns, matrices * rows},
                               Layout::swapped, true);
  example.model.tensors.clear();
  example.model.parameters.front().tensors.clear();
  example.hf.clear();
  for (std::uint64_t i = 0; i < experts * matrices; ++i) {
    auto const expert = i / matrices, first = i % matrices * rows;
    example.model.parameters.front().tensors.push_back(static_cast<std::uint32_t>(i));
    example.model.tensors.push_back(
        {.key = "hf.example.experts." + std::to_string(expert) + "." + std::to_string(i % matrices),
         .dtype = dtype,
         .shape = matrix,
         .parameter = 0,
         .experts = {expert, expert + 1},
         .columns = {first, first + rows}});
    auto& bytes = example.hf.emplace_back(rows * columns * size);
    for (std::uint64_t r = 0; r < rows; ++r) {
      for (std::uint64_t c = 0; c < columns; ++c) {
        auto const native = ((expert * columns + c) * matrices * rows + first + r) * size;
        std::memcpy(bytes.data() + (r * columns + c) * size, example.native.data() + native, size);
      }
    }
  }
  return example;
}

ExampleFile hf_file(ExampleParameter const& example) {
  ExampleFile file;
  for (auto const tensor : example.parameter().tensors) {
    auto slice = example.whole();
    if (example.parameter().stacked_experts) slice.part = example.model.tensors[tensor].experts;
    append_piece(file, tensor, slice, example.hf[tensor]);
  }
  append_random(file.bytes);
  return file;
}

ExampleFile native_file(ExampleParameter const& example, std::vector<Slice> const& slices) {
  ExampleFile file;
  for (auto const& slice : slices) append_piece(file, 0, slice, example.native_of(slice));
  append_random(file.bytes);
  return file;
}

std::vector<Range> bytes_of_slice(ExampleParameter const& example, Form form, StoredPiece const& piece,
                                  Slice const& slice) {
  auto const& parameter = example.parameter();
  auto const size = example.element_bytes(form);
  std::vector<Range> elements;  // of the piece
  if (!parameter.stacked_experts) {
    elements = {{slice.part.begin - piece.slice.part.begin, slice.part.end - piece.slice.part.begin}};
  } else if (form == Form::hf) {
    elements = example.hf_elements(piece.tensor, slice);
  } else {
    for (auto part = slice.part.begin; part < slice.part.end; ++part) {
      auto const first_row = (part - piece.slice.part.begin) * piece.slice.rows.size();
      auto const row = [&](std::uint64_t of_expert) { return first_row + of_expert - piece.slice.rows.begin; };
      elements.push_back({row(slice.rows.begin) * parameter.shape[2], row(slice.rows.end) * parameter.shape[2]});
    }
  }
  for (auto& range : elements) {
    range = {piece.extent.bytes.begin + range.begin * size, piece.extent.bytes.begin + range.end * size};
  }
  return elements;
}

}  // namespace rankslice::test

#include "transform/transfer.hpp"

#include <algorithm>

#include "transform/convert.hpp"
#include "transform/transpose.hpp"

namespace rankslice {

namespace {

constexpr auto kBlockBytes = 512_KiB;    // stays in the second-level cache between being read and being used
constexpr std::uint64_t kLineRows = 64;  // rows of a strip: they become whole cache lines of the transposed tensor

/// One expert of a stacked tensor in its HF form: a matrix of `rows` × `columns`.
struct ExpertMatrix {
  std::uint64_t rows, columns, element_bytes;

  explicit ExpertMatrix(Parameter const& parameter)
      : rows(parameter.hf_shape[1]),
        columns(parameter.hf_shape[2]),
        element_bytes(rankslice::element_bytes(parameter.hf_dtype)) {}
  [[nodiscard]] std::uint64_t row_bytes() const { return columns * element_bytes; }
  [[nodiscard]] std::uint64_t bytes() const { return rows * row_bytes(); }
  [[nodiscard]] std::uint64_t strip_rows() const {
    auto const fit = row_bytes() == 0 ? rows : kBlockBytes / row_bytes();
    return std::max(kLineRows, fit / kLineRows * kLineRows);
  }
};

/// Bytes of an element in a form; 1 for sub-byte types, which are moved as bytes.
std::uint64_t unit_bytes(Parameter const& parameter, Form form) {
  auto const dtype = parameter.dtype_in(form);
  return bits(dtype) < 8 ? 1 : element_bytes(dtype);
}

std::uint64_t element_at(Parameter const& parameter, TensorPlace place, std::uint64_t offset) {
  return (offset - place.origin) / unit_bytes(parameter, place.form);
}

/// Call step(begin, size) for the blocks of [0, total); blocks hold whole elements of up to 8 bytes.
template <typename Step>
void for_blocks(std::uint64_t total, Step const& step) {
  for (std::uint64_t begin = 0; begin < total; begin += kBlockBytes) step(begin, std::min(kBlockBytes, total - begin));
}

}  // namespace

std::span<std::byte> Transfer::staging(std::uint64_t bytes) {
  if (staging_.size() < bytes) staging_.resize(bytes);
  return std::span(staging_).first(bytes);
}

void Transfer::read(Parameter const& parameter, Range part, FileReader& file, TensorPlace place, std::byte* out,
                    DigestSink const& sink) {
  auto const native_bytes = parameter.part_bytes(Form::native);
  if (parameter.layout == Layout::swapped && place.form == Form::hf) {
    for (auto expert = part.begin; expert < part.end; ++expert) {
      read_swapped(parameter, expert, file, place, out + (expert - part.begin) * native_bytes, sink);
    }
    return;
  }
  auto const first_byte = place.origin + part.begin * parameter.part_bytes(place.form);
  auto const converts = parameter.converted() && place.form == Form::hf;
  for_blocks(part.size() * parameter.part_bytes(place.form), [&](std::uint64_t begin, std::uint64_t size) {
    auto const block = converts ? staging(size) : std::span(out + begin, size);
    file.read(block, first_byte + begin);
    sink.add(place.form, element_at(parameter, place, first_byte + begin), block);
    if (converts) {
      auto const elements = size / element_bytes(parameter.hf_dtype);
      auto const before = begin / element_bytes(parameter.hf_dtype);
      convert(block, parameter.hf_dtype, std::span(out + before * native_bytes, elements * native_bytes),
              parameter.dtype);
    }
    done(size);
  });
}

void Transfer::read_swapped(Parameter const& parameter, std::uint64_t expert, FileReader& file, TensorPlace place,
                            std::byte* out, DigestSink const& sink) {
  ExpertMatrix const matrix(parameter);
  auto const first_byte = place.origin + expert * matrix.bytes();
  for (std::uint64_t row = 0; row < matrix.rows; row += matrix.strip_rows()) {
    auto const rows = std::min(matrix.strip_rows(), matrix.rows - row);
    auto const strip = staging(rows * matrix.row_bytes());
    auto const offset = first_byte + row * matrix.row_bytes();
    file.read(strip, offset);
    sink.add(Form::hf, element_at(parameter, place, offset), strip);
    transpose({.data = strip.data(), .rows = rows, .columns = matrix.columns, .stride = matrix.columns},
              matrix.element_bytes, out + row * matrix.element_bytes, matrix.rows);
    done(strip.size());
  }
}

void Transfer::write(Parameter const& parameter, Range part, std::byte const* native, FileWriter& file,
                     TensorPlace place, DigestSink const& sink) {
  auto const native_bytes = parameter.part_bytes(Form::native);
  if (parameter.layout == Layout::swapped && place.form == Form::hf) {
    for (auto expert = part.begin; expert < part.end; ++expert) {
      write_swapped(parameter, expert, native + (expert - part.begin) * native_bytes, file, place, sink);
    }
    return;
  }
  auto const first_byte = place.origin + part.begin * parameter.part_bytes(place.form);
  auto const converts = parameter.converted() && place.form == Form::hf;
  for_blocks(part.size() * parameter.part_bytes(place.form), [&](std::uint64_t begin, std::uint64_t size) {
    auto block = std::span(native + begin, size);
    if (converts) {
      auto const elements = size / element_bytes(parameter.hf_dtype);
      auto const before = begin / element_bytes(parameter.hf_dtype);
      auto const narrow = staging(size);
      convert(std::span(native + before * native_bytes, elements * native_bytes), parameter.dtype, narrow,
              parameter.hf_dtype);
      block = narrow;
    }
    sink.add(place.form, element_at(parameter, place, first_byte + begin), block);
    file.write(block, first_byte + begin);
    done(size);
  });
}

void Transfer::write_swapped(Parameter const& parameter, std::uint64_t expert, std::byte const* native,
                             FileWriter& file, TensorPlace place, DigestSink const& sink) {
  ExpertMatrix const matrix(parameter);
  auto const first_byte = place.origin + expert * matrix.bytes();
  for (std::uint64_t row = 0; row < matrix.rows; row += matrix.strip_rows()) {
    auto const rows = std::min(matrix.strip_rows(), matrix.rows - row);
    auto const strip = staging(rows * matrix.row_bytes());
    transpose(
        {.data = native + row * matrix.element_bytes, .rows = matrix.columns, .columns = rows, .stride = matrix.rows},
        matrix.element_bytes, strip.data(), matrix.columns);
    auto const offset = first_byte + row * matrix.row_bytes();
    sink.add(Form::hf, element_at(parameter, place, offset), strip);
    file.write(strip, offset);
    done(strip.size());
  }
}

void Transfer::digest(Parameter const& parameter, Range part, FileReader& file, TensorPlace place,
                      DigestSink const& sink) {
  auto const first_byte = place.origin + part.begin * parameter.part_bytes(place.form);
  for_blocks(part.size() * parameter.part_bytes(place.form), [&](std::uint64_t begin, std::uint64_t size) {
    auto const block = staging(size);
    file.read(block, first_byte + begin);
    sink.add(place.form, element_at(parameter, place, first_byte + begin), block);
    done(size);
  });
}

}  // namespace rankslice

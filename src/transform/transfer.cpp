#include "transform/transfer.hpp"

#include <algorithm>

#include "core/literals.hpp"
#include "transform/convert.hpp"

namespace rankslice {

namespace {

constexpr auto kBlockBytes = 512_KiB;    // stays in the second-level cache between being read and being used
constexpr std::uint64_t kLineRows = 64;  // rows of a strip: they become whole cache lines of the transposed tensor

/// Call step(begin, size) for the blocks of [0, total); blocks hold whole elements of up to 8 bytes.
template <typename Step>
void for_blocks(std::uint64_t total, Step const& step) {
  for (std::uint64_t begin = 0; begin < total; begin += kBlockBytes) step(begin, std::min(kBlockBytes, total - begin));
}

/// How many rows of a box lie before one of them.
std::uint64_t rows_before(Slice const& box, std::uint64_t part, std::uint64_t row) {
  return (part - box.part.begin) * box.rows.size() + row - box.rows.begin;
}

/// Call step(run) for the parts of `wanted` that are contiguous in the global tensor, in its piece and in memory.
template <typename Step>
void for_each_run(Parameter const& parameter, Slice const& wanted, Step const& step) {
  if (wanted.empty()) return;
  if (wanted.rows.size() == parameter.row_count()) return step(wanted);
  for (auto part = wanted.part.begin; part < wanted.part.end; ++part) {
    step(Slice{.part = {part, part + 1}, .rows = wanted.rows});
  }
}

/// Where a run begins in a piece of a file in `form`.
std::uint64_t offset_of(Parameter const& parameter, StoredPiece const& piece, Slice const& run, Form form) {
  return piece.extent.bytes.begin +
         rows_before(piece.slice, run.part.begin, run.rows.begin) * parameter.row_bytes(form);
}

template <typename Byte>
Byte* address_of(Parameter const& parameter, NativeBox<Byte> const& box, Slice const& run) {
  return box.data + rows_before(box.slice, run.part.begin, run.rows.begin) * parameter.row_bytes(Form::native);
}

}  // namespace

/// One expert of an HF tensor whose rows are columns of the native form. Of its rows only the elements `read` are
/// touched, and of these only `wanted` are used.
struct Transfer::Matrix {
  StoredPiece const& piece;
  std::uint64_t first_byte, unit;
  std::uint64_t rows, columns;  // of the HF tensor
  Range read, wanted;           // columns of the HF tensor: rows of the native form
  std::uint64_t native_column, native_columns;

  Matrix(Model const& model, StoredPiece const& stored, Slice const& slice, std::uint64_t expert)
      : piece(stored), wanted(slice.rows) {
    auto const& parameter = model.parameters[stored.parameter];
    auto const& tensor = model.tensors[stored.tensor];
    unit = parameter.unit_bytes(Form::hf);
    rows = tensor.columns.size();
    columns = parameter.row_count();
    first_byte = stored.extent.bytes.begin + (expert - tensor.experts.begin) * rows * columns * unit;
    read = parameter.read_for(slice, Form::hf).rows;
    native_column = tensor.columns.begin;
    native_columns = parameter.columns();
  }

  [[nodiscard]] bool reads_whole_rows() const { return read.size() == columns; }
  [[nodiscard]] std::uint64_t offset(std::uint64_t row, std::uint64_t column) const {
    return first_byte + (row * columns + column) * unit;
  }
  /// Of the native element that belongs to the first wanted one of a row, in elements from the box's expert on.
  [[nodiscard]] std::uint64_t native_offset(Slice const& box, std::uint64_t row) const {
    return (wanted.begin - box.rows.begin) * native_columns + native_column + row;
  }

  template <typename Step>
  void for_each_strip(Step const& step) const;
};

/// Some rows of the matrix that are moved together.
struct Transfer::Strip {
  std::uint64_t row, rows;
};

template <typename Step>
void Transfer::Matrix::for_each_strip(Step const& step) const {
  auto const row_bytes = std::max<std::uint64_t>(1, read.size() * unit);
  auto const most = std::max(kLineRows, kBlockBytes / row_bytes / kLineRows * kLineRows);
  for (std::uint64_t row = 0; row < rows; row += most) step(Strip{row, std::min(most, rows - row)});
}

Parameter const& Transfer::parameter_of(StoredPiece const& piece) const { return model_.parameters[piece.parameter]; }

bool Transfer::is_swapped(StoredPiece const& piece) const {
  return form_ == Form::hf && parameter_of(piece).layout == Layout::swapped;
}

std::span<std::byte> Transfer::staging(std::uint64_t bytes) {
  if (staging_.size() < bytes) staging_.resize(bytes);
  return std::span(staging_).first(bytes);
}

/// Digest bytes that stand at `offset` of the file, by where that is in the piece.
void Transfer::add(StoredPiece const& piece, std::uint64_t offset, std::span<std::byte const> bytes,
                   DigestSink const& sink) const {
  if (sink.digest == nullptr) return;
  auto const& parameter = parameter_of(piece);
  auto const element = (offset - piece.extent.bytes.begin) / parameter.unit_bytes(form_);
  if (form_ == Form::hf) return sink.digest->add_stored(piece.tensor, element, bytes, *sink.sums);
  auto const columns = parameter.columns();
  auto const rows = piece.slice.rows.size();
  auto const row = element / columns;
  auto const global_row =
      (piece.slice.part.begin + row / rows) * parameter.row_count() + piece.slice.rows.begin + row % rows;
  sink.digest->add_native(global_row * columns + element % columns, bytes, *sink.sums);
}

MatrixView Transfer::read_strip(Matrix const& matrix, Strip const& strip, FileReader& file, DigestSink const& sink) {
  auto const stride = matrix.read.size();
  auto const row_bytes = stride * matrix.unit;
  auto const bytes = staging(strip.rows * row_bytes);
  if (matrix.reads_whole_rows()) {
    file.read(bytes, matrix.offset(strip.row, 0));
  } else {
    for (std::uint64_t i = 0; i < strip.rows; ++i) {
      file.read(bytes.subspan(i * row_bytes, row_bytes), matrix.offset(strip.row + i, matrix.read.begin));
    }
  }
  if (matrix.wanted.size() == matrix.columns) {
    add(matrix.piece, matrix.offset(strip.row, 0), bytes, sink);
  } else {
    for (std::uint64_t i = 0; i < strip.rows; ++i) {
      auto const begin = i * row_bytes + (matrix.wanted.begin - matrix.read.begin) * matrix.unit;
      add(matrix.piece, matrix.offset(strip.row + i, matrix.wanted.begin),
          bytes.subspan(begin, matrix.wanted.size() * matrix.unit), sink);
    }
  }
  done(bytes.size());
  return {.data = bytes.data() + (matrix.wanted.begin - matrix.read.begin) * matrix.unit,
          .rows = strip.rows,
          .columns = matrix.wanted.size(),
          .stride = stride};
}

void Transfer::write_strip(Matrix const& matrix, Strip const& strip, std::span<std::byte const> bytes, FileWriter& file,
                           DigestSink const& sink) {
  auto const whole = matrix.wanted.size() == matrix.columns;
  auto const runs = whole ? 1 : strip.rows;
  auto const run_bytes = bytes.size() / runs;
  for (std::uint64_t i = 0; i < runs; ++i) {
    auto const run = bytes.subspan(i * run_bytes, run_bytes);
    auto const offset = matrix.offset(strip.row + i, matrix.wanted.begin);
    add(matrix.piece, offset, run, sink);
    file.write(run, offset);
  }
  done(bytes.size());
}

void Transfer::read(StoredPiece const& piece, Slice const& wanted, FileReader& file, NativeBox<std::byte> const& out,
                    DigestSink const& sink) {
  auto const& parameter = parameter_of(piece);
  if (is_swapped(piece)) {
    for (auto expert = wanted.part.begin; expert < wanted.part.end; ++expert) {
      Matrix const matrix(model_, piece, wanted, expert);
      auto* const of_expert = address_of(parameter, out, {.part = {expert, expert + 1}, .rows = out.slice.rows});
      matrix.for_each_strip([&](Strip const& strip) {
        auto const view = read_strip(matrix, strip, file, sink);
        transpose(view, matrix.unit, of_expert + matrix.native_offset(out.slice, strip.row) * matrix.unit,
                  matrix.native_columns);
      });
    }
    return;
  }
  auto const converts = parameter.converted() && form_ == Form::hf;
  auto const unit = parameter.unit_bytes(form_);
  auto const native_unit = parameter.unit_bytes(Form::native);
  for_each_run(parameter, wanted, [&](Slice const& run) {
    auto const offset = offset_of(parameter, piece, run, form_);
    auto* const memory = address_of(parameter, out, run);
    for_blocks(parameter.bytes(run, form_), [&](std::uint64_t begin, std::uint64_t size) {
      auto const native = std::span(memory + begin / unit * native_unit, size / unit * native_unit);
      auto const block = converts ? staging(size) : native;
      file.read(block, offset + begin);
      add(piece, offset + begin, block, sink);
      if (converts) convert(block, parameter.hf_dtype, native, parameter.dtype);
      done(size);
    });
  });
}

void Transfer::write(StoredPiece const& piece, Slice const& wanted, NativeBox<std::byte const> const& in,
                     FileWriter& file, DigestSink const& sink) {
  auto const& parameter = parameter_of(piece);
  if (is_swapped(piece)) {
    for (auto expert = wanted.part.begin; expert < wanted.part.end; ++expert) {
      Matrix const matrix(model_, piece, wanted, expert);
      auto const* const of_expert = address_of(parameter, in, {.part = {expert, expert + 1}, .rows = in.slice.rows});
      matrix.for_each_strip([&](Strip const& strip) {
        auto const bytes = staging(strip.rows * matrix.wanted.size() * matrix.unit);
        transpose({.data = of_expert + matrix.native_offset(in.slice, strip.row) * matrix.unit,
                   .rows = matrix.wanted.size(),
                   .columns = strip.rows,
                   .stride = matrix.native_columns},
                  matrix.unit, bytes.data(), matrix.wanted.size());
        write_strip(matrix, strip, bytes, file, sink);
      });
    }
    return;
  }
  auto const converts = parameter.converted() && form_ == Form::hf;
  auto const unit = parameter.unit_bytes(form_);
  auto const native_unit = parameter.unit_bytes(Form::native);
  for_each_run(parameter, wanted, [&](Slice const& run) {
    auto const offset = offset_of(parameter, piece, run, form_);
    auto const* const memory = address_of(parameter, in, run);
    for_blocks(parameter.bytes(run, form_), [&](std::uint64_t begin, std::uint64_t size) {
      auto block = std::span(memory + begin / unit * native_unit, size / unit * native_unit);
      if (converts) {
        auto const narrow = staging(size);
        convert(block, parameter.dtype, narrow, parameter.hf_dtype);
        block = narrow;
      }
      add(piece, offset + begin, block, sink);
      file.write(block, offset + begin);
      done(size);
    });
  });
}

void Transfer::digest(StoredPiece const& piece, Slice const& wanted, FileReader& file, DigestSink const& sink) {
  auto const& parameter = parameter_of(piece);
  if (is_swapped(piece)) {
    for (auto expert = wanted.part.begin; expert < wanted.part.end; ++expert) {
      Matrix const matrix(model_, piece, wanted, expert);
      matrix.for_each_strip([&](Strip const& strip) { (void)read_strip(matrix, strip, file, sink); });
    }
    return;
  }
  for_each_run(parameter, wanted, [&](Slice const& run) {
    auto const offset = offset_of(parameter, piece, run, form_);
    for_blocks(parameter.bytes(run, form_), [&](std::uint64_t begin, std::uint64_t size) {
      auto const block = staging(size);
      file.read(block, offset + begin);
      add(piece, offset + begin, block, sink);
      done(size);
    });
  });
}

}  // namespace rankslice

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

/// Some elements that are contiguous in the global tensor, in a file and in memory.
struct Block {
  Slice run;              // which they are part of, …
  std::uint64_t skipped;  // … after so many elements
  std::uint64_t offset, bytes;
};

/// Call step(block) for the blocks of `wanted` in a piece of a file in `form`.
template <typename Step>
void for_each_block(Parameter const& parameter, StoredPiece const& piece, Slice const& wanted, Form form,
                    Step const& step) {
  for_each_run(parameter, wanted, [&](Slice const& run) {
    auto const offset = offset_of(parameter, piece, run, form);
    for_blocks(parameter.bytes(run, form), [&](std::uint64_t begin, std::uint64_t size) {
      step(Block{.run = run, .skipped = begin / parameter.unit_bytes(form), .offset = offset + begin, .bytes = size});
    });
  });
}

/// The memory of a block of a file in `form`.
template <typename Byte>
std::span<Byte> native_block(Parameter const& parameter, NativeBox<Byte> const& box, Block const& block, Form form) {
  auto const unit = parameter.unit_bytes(Form::native);
  auto const rows = rows_before(box.slice, block.run.part.begin, block.run.rows.begin);
  return {box.data + rows * parameter.row_bytes(Form::native) + block.skipped * unit,
          block.bytes / parameter.unit_bytes(form) * unit};
}

}  // namespace

/// One expert of an HF tensor whose rows are columns of the native form. Of its rows only the elements `read` are
/// touched, and of these only `wanted` are used.
struct Transfer::Matrix {
  StoredPiece const& piece;
  std::uint64_t expert, first_byte, unit;
  std::uint64_t rows, columns;  // of the HF tensor
  Range read, wanted;           // columns of the HF tensor: rows of the native form
  std::uint64_t native_column, native_columns;

  Matrix(Model const& model, StoredPiece const& stored, Slice const& slice, std::uint64_t number)
      : piece(stored), expert(number), wanted(slice.rows) {
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
  /// The native element that belongs to the first wanted one of a row.
  template <typename Byte>
  [[nodiscard]] Byte* address(NativeBox<Byte> const& box, std::uint64_t row) const {
    return box.data + (rows_before(box.slice, expert, wanted.begin) * native_columns + native_column + row) * unit;
  }
};

/// Some rows of a matrix that are moved together.
struct Transfer::Strip {
  std::uint64_t row, rows;
};

template <typename Step>
void Transfer::for_each_strip(StoredPiece const& piece, Slice const& wanted, Step const& step) const {
  for (auto expert = wanted.part.begin; expert < wanted.part.end; ++expert) {
    Matrix const matrix(model_, piece, wanted, expert);
    auto const row_bytes = std::max<std::uint64_t>(1, matrix.read.size() * matrix.unit);
    auto const most = std::max(kLineRows, kBlockBytes / row_bytes / kLineRows * kLineRows);
    for (std::uint64_t row = 0; row < matrix.rows; row += most) {
      step(matrix, Strip{row, std::min(most, matrix.rows - row)});
    }
  }
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
  if (is_swapped(piece)) {
    return for_each_strip(piece, wanted, [&](Matrix const& matrix, Strip const& strip) {
      auto const view = read_strip(matrix, strip, file, sink);
      transpose(view, matrix.unit, matrix.address(out, strip.row), matrix.native_columns);
    });
  }
  auto const& parameter = parameter_of(piece);
  auto const converts = parameter.converted() && form_ == Form::hf;
  for_each_block(parameter, piece, wanted, form_, [&](Block const& block) {
    auto const native = native_block(parameter, out, block, form_);
    auto const bytes = converts ? staging(block.bytes) : native;
    file.read(bytes, block.offset);
    add(piece, block.offset, bytes, sink);
    if (converts) convert(bytes, parameter.hf_dtype, native, parameter.dtype);
    done(block.bytes);
  });
}

void Transfer::write(StoredPiece const& piece, Slice const& wanted, NativeBox<std::byte const> const& in,
                     FileWriter& file, DigestSink const& sink) {
  if (is_swapped(piece)) {
    return for_each_strip(piece, wanted, [&](Matrix const& matrix, Strip const& strip) {
      auto const bytes = staging(strip.rows * matrix.wanted.size() * matrix.unit);
      MatrixView const native{.data = matrix.address(in, strip.row),
                              .rows = matrix.wanted.size(),
                              .columns = strip.rows,
                              .stride = matrix.native_columns};
      transpose(native, matrix.unit, bytes.data(), matrix.wanted.size());
      write_strip(matrix, strip, bytes, file, sink);
    });
  }
  auto const& parameter = parameter_of(piece);
  auto const converts = parameter.converted() && form_ == Form::hf;
  for_each_block(parameter, piece, wanted, form_, [&](Block const& block) {
    auto bytes = native_block(parameter, in, block, form_);
    if (converts) {
      auto const narrow = staging(block.bytes);
      convert(bytes, parameter.dtype, narrow, parameter.hf_dtype);
      bytes = narrow;
    }
    add(piece, block.offset, bytes, sink);
    file.write(bytes, block.offset);
    done(block.bytes);
  });
}

void Transfer::digest(StoredPiece const& piece, Slice const& wanted, FileReader& file, DigestSink const& sink) {
  if (is_swapped(piece)) {
    return for_each_strip(
        piece, wanted, [&](Matrix const& matrix, Strip const& strip) { (void)read_strip(matrix, strip, file, sink); });
  }
  for_each_block(parameter_of(piece), piece, wanted, form_, [&](Block const& block) {
    auto const bytes = staging(block.bytes);
    file.read(bytes, block.offset);
    add(piece, block.offset, bytes, sink);
    done(block.bytes);
  });
}

}  // namespace rankslice

#include "transform/transfer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "rankslice/error.hpp"

#include "core/literals.hpp"
#include "core/rows_before.hpp"
#include "transform/convert.hpp"

namespace rankslice {

namespace {

constexpr auto kBlockBytes = 512_KiB;    // stays in the second-level cache between being read and being used
constexpr auto kUploadBytes = 4_MiB;     // of a block for a device: the time of a copy outweighs that of starting it
constexpr std::uint64_t kLineRows = 64;  // rows of a strip: they become whole cache lines of the transposed tensor

std::uint64_t block_bytes(Device const* device) { return device != nullptr ? kUploadBytes : kBlockBytes; }

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

/// Call step(block) for the blocks of `wanted` in a piece of a file in `form`. They have up to `most` bytes, a multiple
/// of every element's.
template <typename Step>
void for_each_block(Parameter const& parameter, StoredPiece const& piece, Slice const& wanted, Form form,
                    std::uint64_t most, Step const& step) {
  for_each_run(parameter, wanted, [&](Slice const& run) {
    auto const offset = offset_of(parameter, piece, run, form);
    auto const total = parameter.bytes(run, form);
    for (std::uint64_t begin = 0; begin < total; begin += most) {
      step(Block{.run = run,
                 .skipped = begin / parameter.unit_bytes(form),
                 .offset = offset + begin,
                 .bytes = std::min(most, total - begin)});
    }
  });
}

/// The memory of a block of a file in `form`.
template <typename Byte>
std::span<Byte> native_block(Parameter const& parameter, NativeBox<Byte> const& box, Block const& block, Form form) {
  auto const unit = parameter.unit_bytes(Form::native);
  return {box.data + bytes_before(parameter, box.slice, block.run) + block.skipped * unit,
          block.bytes / parameter.unit_bytes(form) * unit};
}

/// As `transpose`, but in the same order.
void copy_rows(MatrixView const& from, std::uint64_t unit, std::byte* to, std::uint64_t to_stride) {
  for (std::uint64_t i = 0; i < from.rows; ++i) {
    std::memcpy(to + i * to_stride * unit, from.data + i * from.stride * unit, from.columns * unit);
  }
}

/// The first `bytes` of a buffer that grows when it has to.
std::span<std::byte> sized(std::vector<std::byte>& buffer, std::uint64_t bytes) {
  if (buffer.size() < bytes) buffer.resize(bytes);
  return std::span(buffer).first(bytes);
}

}  // namespace

/// One expert of an HF tensor whose rows are columns of the native form. Of its rows only the elements `read` are
/// touched, and of these only `wanted` are used.
struct Transfer::Matrix {
  StoredPiece const& piece;
  std::uint64_t expert, first_byte, unit, native_unit;
  std::uint64_t rows, columns;  // of the HF tensor
  Range read, wanted;           // columns of the HF tensor: rows of the native form
  std::uint64_t native_column, native_columns;

  Matrix(Model const& model, StoredPiece const& stored, Slice const& slice, std::uint64_t number)
      : piece(stored), expert(number), wanted(slice.rows) {
    auto const& parameter = model.parameters[stored.parameter];
    auto const& tensor = model.tensors[stored.tensor];
    unit = parameter.unit_bytes(Form::hf);
    native_unit = parameter.unit_bytes(Form::native);
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
    auto const column = native_column + row;
    auto const first = (expert - box.slice.part.begin) * box.slice.rows.size() * native_columns;
    auto const above = wanted.begin - box.slice.rows.begin;
    auto const before = box.swapped ? column * stride(box) + above : above * stride(box) + column;
    return box.data + (first + before) * native_unit;
  }
  /// Elements from one row of a box to the next.
  template <typename Byte>
  [[nodiscard]] std::uint64_t stride(NativeBox<Byte> const& box) const {
    return box.swapped ? box.slice.rows.size() : native_columns;
  }
};

/// Some rows of a matrix that are moved together.
struct Transfer::Strip {
  std::uint64_t row, rows;

  /// Call step(offset, run) for the wanted elements, which `elements` shows in units of so many bytes: in runs that are
  /// contiguous in the file.
  template <typename Step>
  void for_each_run(Matrix const& matrix, MatrixView const& elements, std::uint64_t unit, Step const& step) const {
    auto const whole = matrix.wanted.size() == matrix.columns && elements.stride == elements.columns;
    auto const runs = whole ? 1 : rows;
    for (std::uint64_t i = 0; i < runs; ++i) {
      step(matrix.offset(row + i, matrix.wanted.begin),
           std::span(elements.data + i * elements.stride * unit, elements.columns * unit * (whole ? rows : 1)));
    }
  }
};

template <typename Step>
void Transfer::for_each_strip(Matrix const& matrix, Range rows, Step const& step) const {
  auto const row_bytes = std::max<std::uint64_t>(1, matrix.read.size() * matrix.unit);
  auto const most = std::max(kLineRows, block_bytes(device_) / row_bytes / kLineRows * kLineRows);
  for (auto row = rows.begin; row < rows.end; row += most) step(Strip{row, std::min(most, rows.end - row)});
}

template <typename Step>
void Transfer::for_each_strip(StoredPiece const& piece, Slice const& wanted, Step const& step) const {
  for (auto expert = wanted.part.begin; expert < wanted.part.end; ++expert) {
    Matrix const matrix(model_, piece, wanted, expert);
    for_each_strip(matrix, {0, matrix.rows}, [&](Strip const& strip) { step(matrix, strip); });
  }
}

Parameter const& Transfer::parameter_of(StoredPiece const& piece) const { return model_.parameters[piece.parameter]; }

bool Transfer::is_swapped(StoredPiece const& piece) const {
  return form_ == Form::hf && parameter_of(piece).layout == Layout::swapped;
}

bool Transfer::converts(StoredPiece const& piece) const { return form_ == Form::hf && parameter_of(piece).converted(); }

/// Which element of the piece stands at `offset` of the file.
std::uint64_t Transfer::element_at(StoredPiece const& piece, std::uint64_t offset) const {
  return (offset - piece.extent.bytes.begin) / parameter_of(piece).unit_bytes(form_);
}

/// Digest bytes that stand at `offset` of the file, by where that is in the piece.
void Transfer::add(StoredPiece const& piece, std::uint64_t offset, std::span<std::byte const> bytes,
                   DigestSink const& sink) const {
  if (sink.digest == nullptr) return;
  auto const& parameter = parameter_of(piece);
  auto const element = element_at(piece, offset);
  if (form_ == Form::hf) return sink.digest->add_stored(piece.tensor, element, bytes, *sink.sums);
  auto const columns = parameter.columns();
  auto const rows = piece.slice.rows.size();
  auto const row = element / columns;
  auto const global_row =
      (piece.slice.part.begin + row / rows) * parameter.row_count() + piece.slice.rows.begin + row % rows;
  sink.digest->add_native(global_row * columns + element % columns, bytes, *sink.sums);
}

/// Digest what the elements at `offset` of the file are converted to.
void Transfer::add_converted(StoredPiece const& piece, std::uint64_t offset, std::span<std::byte const> values,
                             DigestSink const& sink) const {
  if (sink.digest != nullptr) {
    sink.digest->add_converted(piece.tensor, element_at(piece, offset), values, *sink.sums);
  }
}

/// Codes without their scales mean nothing (rule 60). @throws PlanError
void Transfer::require_no_codes(StoredPiece const& piece) const {
  auto const& parameter = parameter_of(piece);
  if (!converts(piece) || parameter.hf_dtype != DType::F8_E4M3) return;
  auto const& key = model_.tensors[piece.tensor].key;
  throw PlanError(fmt::format("{}: {} would become {} without its block scales, which are in none of the files", key,
                              name(parameter.hf_dtype), name(parameter.dtype)),
                  key);
}

void Transfer::read_scales(StoredPiece const& piece, Slice const& wanted, PieceFiles const& files,
                           DigestSink const& sink) {
  if (wanted.empty()) return;
  if (!piece.scales) return require_no_codes(piece);
  auto const bytes = scales_.read(model_, piece, wanted, *files.scales);
  if (sink.digest != nullptr) {
    scales_.for_each_digested([&](std::uint64_t first_element, std::span<std::byte const> run) {
      sink.digest->add_scales(piece.tensor, first_element, run, *sink.sums);
    });
  }
  done(bytes);
}

MatrixView Transfer::read_strip(Matrix const& matrix, Strip const& strip, FileReader& file) {
  auto const stride = matrix.read.size();
  auto const row_bytes = stride * matrix.unit;
  auto const size = strip.rows * row_bytes;
  auto const bytes = converts(matrix.piece) ? sized(staging_, size) : last_stop(staging_, size);
  if (matrix.reads_whole_rows()) {
    file.read(bytes, matrix.offset(strip.row, 0));
  } else {
    for (std::uint64_t i = 0; i < strip.rows; ++i) {
      file.read(bytes.subspan(i * row_bytes, row_bytes), matrix.offset(strip.row + i, matrix.read.begin));
    }
  }
  return {.data = bytes.data(), .rows = strip.rows, .columns = stride, .stride = stride};
}

/// What is wanted of a strip that was read, digested.
MatrixView Transfer::wanted_of(Matrix const& matrix, Strip const& strip, MatrixView const& read,
                               DigestSink const& sink) const {
  MatrixView const wanted{.data = read.data + (matrix.wanted.begin - matrix.read.begin) * matrix.unit,
                          .rows = read.rows,
                          .columns = matrix.wanted.size(),
                          .stride = read.stride};
  strip.for_each_run(matrix, wanted, matrix.unit, [&](std::uint64_t offset, std::span<std::byte const> run) {
    add(matrix.piece, offset, run, sink);
  });
  return wanted;
}

MatrixView Transfer::convert_strip(Matrix const& matrix, Strip const& strip, MatrixView const& in,
                                   DigestSink const& sink) {
  if (!converts(matrix.piece)) return in;
  auto const& parameter = parameter_of(matrix.piece);
  auto const values = last_stop(converted_, in.rows * in.columns * matrix.native_unit);
  MatrixView const out{.data = values.data(), .rows = in.rows, .columns = in.columns, .stride = in.columns};
  if (matrix.piece.scales) {
    dequantise(in, strip.row, matrix.wanted.begin, scales_.of(matrix.expert), values.data(), parameter.dtype);
  } else {
    auto const width = in.columns * matrix.native_unit;
    for (std::uint64_t i = 0; i < in.rows; ++i) {
      convert(std::span(in.data + i * in.stride * matrix.unit, in.columns * matrix.unit), parameter.hf_dtype,
              values.subspan(i * width, width), parameter.dtype);
    }
  }
  strip.for_each_run(matrix, out, matrix.native_unit, [&](std::uint64_t offset, std::span<std::byte const> run) {
    add_converted(matrix.piece, offset, run, sink);
  });
  return out;
}

/// To where the values belong, which in a swapped box are rows. Those for a device are in the block that its `staging`
/// gave last.
void Transfer::turn(Matrix const& matrix, Strip const& strip, MatrixView const& values,
                    NativeBox<std::byte> const& out) {
  auto* const to = matrix.address(out, strip.row);
  if (device_ != nullptr) {
    device_->upload_transposed(values.data, values.rows, values.columns, values.stride, matrix.native_unit, to,
                               matrix.native_columns);
  } else {
    (out.swapped ? copy_rows : transpose)(values, matrix.native_unit, to, matrix.stride(out));
  }
}

/// Convert elements that stand at `offset` of the file, and those behind them.
void Transfer::convert_block(StoredPiece const& piece, std::uint64_t offset, std::span<std::byte const> in,
                             std::span<std::byte> out, DigestSink const& sink) {
  auto const& parameter = parameter_of(piece);
  if (!piece.scales) {
    convert(in, parameter.hf_dtype, out, parameter.dtype);
  } else {
    auto const& tensor = model_.tensors[piece.tensor];
    auto const columns = tensor.shape.back();
    auto const rows = tensor.shape[tensor.shape.size() - 2];
    auto const unit = parameter.unit_bytes(Form::native);
    auto const first = element_at(piece, offset);
    for (std::uint64_t i = 0; i < in.size();) {  // codes are bytes
      auto const row = (first + i) / columns;
      auto const column = (first + i) % columns;
      auto const left = in.size() - i;
      auto const whole_rows = column == 0 ? std::min(left / columns, rows - row % rows) : 0;
      MatrixView const box{.data = in.data() + i,
                           .rows = std::max<std::uint64_t>(1, whole_rows),
                           .columns = whole_rows != 0 ? columns : std::min(left, columns - column),
                           .stride = columns};
      dequantise(box, row % rows, column, scales_.of(tensor.experts.begin + row / rows), out.data() + i * unit,
                 parameter.dtype);
      i += box.rows * box.columns;
    }
  }
  add_converted(piece, offset, out, sink);
}

/// Where values are before they go to their place in memory.
std::span<std::byte> Transfer::last_stop(std::vector<std::byte>& on_host, std::uint64_t bytes) {
  return device_ != nullptr ? device_->staging(bytes) : sized(on_host, bytes);
}

/// The native values of a strip, in the order of the file.
std::span<std::byte const> Transfer::turn_back(Matrix const& matrix, Strip const& strip,
                                               NativeBox<std::byte const> const& in) {
  auto const columns = matrix.wanted.size();
  auto const size = strip.rows * columns * matrix.native_unit;
  auto const* const from = matrix.address(in, strip.row);
  if (in.swapped && in.slice.rows == matrix.wanted) return {from, size};
  auto const turned = sized(converted_, size);
  MatrixView view{.data = from, .rows = columns, .columns = strip.rows, .stride = matrix.stride(in)};
  if (in.swapped) std::swap(view.rows, view.columns);
  (in.swapped ? copy_rows : transpose)(view, matrix.native_unit, turned.data(), columns);
  return turned;
}

/// Native values as the file has them: themselves, or computed back.
std::span<std::byte const> Transfer::narrow(StoredPiece const& piece, std::span<std::byte const> native) {
  auto const& parameter = parameter_of(piece);
  if (!converts(piece)) return native;
  if (!parameter.invertible()) {
    throw PlanError(fmt::format("{}: {} values do not give {} back", parameter.fqn, name(parameter.dtype),
                                name(parameter.hf_dtype)),
                    parameter.fqn);
  }
  auto const unit = parameter.unit_bytes(Form::native);
  auto const narrow = sized(staging_, native.size() / unit * parameter.unit_bytes(Form::hf));
  convert(native, parameter.dtype, narrow, parameter.hf_dtype);
  return narrow;
}

/// Write elements to `offset` of the file, and digest them, also as what they will be read as.
void Transfer::write_run(StoredPiece const& piece, std::uint64_t offset, std::span<std::byte const> bytes,
                         WriteBytes const& out, DigestSink const& sink) {
  add(piece, offset, bytes, sink);
  if (converts(piece) && sink.digest != nullptr) {
    auto const& parameter = parameter_of(piece);
    auto const unit = parameter.unit_bytes(Form::hf);
    auto const values = sized(widened_, bytes.size() / unit * parameter.unit_bytes(Form::native));
    convert(bytes, parameter.hf_dtype, values, parameter.dtype);
    add_converted(piece, offset, values, sink);
  }
  out(bytes, offset);
}

void Transfer::write_strip(Matrix const& matrix, Strip const& strip, std::span<std::byte const> bytes,
                           WriteBytes const& out, DigestSink const& sink) {
  MatrixView const elements{
      .data = bytes.data(), .rows = strip.rows, .columns = matrix.wanted.size(), .stride = matrix.wanted.size()};
  strip.for_each_run(matrix, elements, matrix.unit, [&](std::uint64_t offset, std::span<std::byte const> run) {
    write_run(matrix.piece, offset, run, out, sink);
  });
  done(bytes.size());
}

void Transfer::read(StoredPiece const& piece, Slice const& wanted, PieceFiles const& files,
                    NativeBox<std::byte> const& out, DigestSink const& sink) {
  read_scales(piece, wanted, files, sink);
  if (is_swapped(piece)) {
    return for_each_strip(piece, wanted, [&](Matrix const& matrix, Strip const& strip) {
      auto const read = read_strip(matrix, strip, files.data);
      auto const stored = wanted_of(matrix, strip, read, sink);
      done(read.rows * read.columns * matrix.unit);
      turn(matrix, strip, convert_strip(matrix, strip, stored, sink), out);
    });
  }
  auto const& parameter = parameter_of(piece);
  for_each_block(parameter, piece, wanted, form_, block_bytes(device_), [&](Block const& block) {
    auto const native = native_block(parameter, out, block, form_);
    auto const values = device_ != nullptr ? device_->staging(native.size()) : native;
    auto const bytes = converts(piece) ? sized(staging_, block.bytes) : values;
    files.data.read(bytes, block.offset);
    add(piece, block.offset, bytes, sink);
    if (converts(piece)) convert_block(piece, block.offset, bytes, values, sink);
    if (device_ != nullptr) device_->upload(values, native.data());
    done(block.bytes);
  });
}

void Transfer::write(StoredPiece const& piece, Slice const& wanted, NativeBox<std::byte const> const& in,
                     FileWriter& file, DigestSink const& sink) {
  write(
      piece, wanted, in, [&](std::span<std::byte const> bytes, std::uint64_t offset) { file.write(bytes, offset); },
      sink);
}

void Transfer::write(StoredPiece const& piece, Slice const& wanted, NativeBox<std::byte const> const& in,
                     WriteBytes const& out, DigestSink const& sink) {
  if (is_swapped(piece)) {
    return for_each_strip(piece, wanted, [&](Matrix const& matrix, Strip const& strip) {
      write_strip(matrix, strip, narrow(piece, turn_back(matrix, strip, in)), out, sink);
    });
  }
  auto const& parameter = parameter_of(piece);
  for_each_block(parameter, piece, wanted, form_, kBlockBytes, [&](Block const& block) {
    write_run(piece, block.offset, narrow(piece, native_block(parameter, in, block, form_)), out, sink);
    done(block.bytes);
  });
}

void Transfer::digest(StoredPiece const& piece, Slice const& wanted, PieceFiles const& files, DigestSink const& sink) {
  read_scales(piece, wanted, files, sink);
  if (is_swapped(piece)) {
    return for_each_strip(piece, wanted, [&](Matrix const& matrix, Strip const& strip) {
      auto const read = read_strip(matrix, strip, files.data);
      auto const stored = wanted_of(matrix, strip, read, sink);
      done(read.rows * read.columns * matrix.unit);
      (void)convert_strip(matrix, strip, stored, sink);
    });
  }
  auto const& parameter = parameter_of(piece);
  for_each_block(parameter, piece, wanted, form_, kBlockBytes, [&](Block const& block) {
    auto const bytes = sized(staging_, block.bytes);
    files.data.read(bytes, block.offset);
    add(piece, block.offset, bytes, sink);
    if (converts(piece)) {
      auto const unit = parameter.unit_bytes(Form::native);
      auto const values = sized(converted_, block.bytes / parameter.unit_bytes(Form::hf) * unit);
      convert_block(piece, block.offset, bytes, values, sink);
    }
    done(block.bytes);
  });
}

void Transfer::read_rows(StoredPiece const& piece, std::uint64_t expert, Range stored_rows, PieceFiles const& files,
                         std::span<RowsFor const> to) {
  std::vector<Matrix> matrices;
  for (auto const& [rows, values, sink] : to) {
    Slice const wanted{.part = {expert, expert + 1}, .rows = rows};
    matrices.emplace_back(model_, piece, wanted, expert);
  }
  read_scales(piece, {.part = {expert, expert + 1}, .rows = matrices.front().read}, files, {});
  for (auto const& [rows, values, sink] : to) {
    if (sink.digest != nullptr && piece.scales) {
      scales_.for_each_in_rows(expert, stored_rows, rows, [&](std::uint64_t first, std::span<std::byte const> run) {
        sink.digest->add_scales(piece.tensor, first, run, *sink.sums);
      });
    }
  }
  for_each_strip(matrices.front(), stored_rows, [&](Strip const& strip) {
    auto const read = read_strip(matrices.front(), strip, files.data);
    for (std::size_t i = 0; i < to.size(); ++i) {
      auto const& matrix = matrices[i];
      auto const stored = wanted_of(matrix, strip, read, to[i].sink);
      auto const values = convert_strip(matrix, strip, stored, to[i].sink);
      auto const width = values.columns * matrix.native_unit;
      auto* const packed = to[i].values + (strip.row - stored_rows.begin) * width;
      for (std::uint64_t row = 0; row < values.rows; ++row) {
        std::memcpy(packed + row * width, values.data + row * values.stride * matrix.native_unit, width);
      }
    }
    done(read.rows * read.columns * matrices.front().unit);
  });
}

void Transfer::place_rows(StoredPiece const& piece, std::uint64_t expert, Range stored_rows, std::byte const* values,
                          NativeBox<std::byte> const& out) {
  Matrix const matrix(model_, piece, {.part = {expert, expert + 1}, .rows = out.slice.rows}, expert);
  auto const columns = matrix.wanted.size();
  auto const row_bytes = columns * matrix.native_unit;
  for_each_strip(matrix, stored_rows, [&](Strip const& strip) {
    MatrixView view{.data = values + (strip.row - stored_rows.begin) * row_bytes,
                    .rows = strip.rows,
                    .columns = columns,
                    .stride = columns};
    if (device_ != nullptr) {
      auto const staged = device_->staging(strip.rows * row_bytes);
      std::memcpy(staged.data(), view.data, staged.size());
      view.data = staged.data();
    }
    turn(matrix, strip, view, out);
  });
}

}  // namespace rankslice

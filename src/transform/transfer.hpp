#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "rankslice/checkpoint.hpp"
#include "rankslice/device.hpp"
#include "rankslice/digest.hpp"

#include "core/threads.hpp"
#include "io/file.hpp"
#include "transform/parameter_digest.hpp"
#include "transform/piece_scales.hpp"
#include "transform/transpose.hpp"

namespace rankslice {

/// Memory that holds a slice of one parameter in the native form: [part, rows, columns], contiguous. What goes from
/// file to file need not be turned in between: a box may have native values as files in the HF form have them, with
/// these axes swapped.
template <typename Byte>
struct NativeBox {
  Byte* data = nullptr;
  Slice slice;
  bool swapped = false;  ///< [part, columns, rows]; only for parameters of `Layout::swapped`, and on the host.
};

/// The files that a piece is read from.
struct PieceFiles {
  FileReader& data;
  FileReader* scales = nullptr;  ///< Of pieces with block scales.
};

/// Takes bytes that stand at `offset` of a file.
using WriteBytes = std::function<void(std::span<std::byte const> bytes, std::uint64_t offset)>;

/// Where the digest of a pass goes; nothing is digested without `digest`.
struct DigestSink {
  ParameterDigest* digest = nullptr;
  Digests* sums = nullptr;
};

/// What somebody gets of stored rows that are columns of the native form.
struct RowsFor {
  Range rows;                   ///< Of the native form: columns of the file.
  std::byte* values = nullptr;  ///< Their values, converted but not turned: [stored rows, rows], contiguous.
  DigestSink sink;
};

/// Moves slices of tensors between files in one form and memory in the native form, in cache-sized blocks: what is
/// digested, converted and transposed is still in the cache from being read. One staging buffer for each of these
/// steps, reused from block to block.
///
/// On their way to a device, values make their last stop in its pinned staging memory, in blocks large enough for its
/// bus, and are transposed there. Digests and conversions happen before: digests of what is read then also prove the
/// upload, and each conversion is in one place, whose bits are the same whatever the values are for.
///
/// A piece says where the tensor lies; `wanted`, which lies inside it and inside the box, what of it is moved. Digests
/// have the coordinates of the offsets that were really read or written.
class Transfer {
 public:
  /// `model` and `device` outlive the transfer. With a device, `read` fills its memory, and what it started is done
  /// when the device has finished.
  Transfer(Model const& model, Form form, BlockDone done = {}, Device* device = nullptr)
      : model_(model), form_(form), done_(std::move(done)), device_(device) {}

  /// @throws IoError, FormatError; PlanError for codes of a piece without block scales, here and in `digest`;
  /// DeviceError
  void read(StoredPiece const& piece, Slice const& wanted, PieceFiles const& files, NativeBox<std::byte> const& out,
            DigestSink const& sink);
  /// @throws IoError; PlanError for a converted parameter whose values cannot be computed back
  void write(StoredPiece const& piece, Slice const& wanted, NativeBox<std::byte const> const& in, FileWriter& file,
             DigestSink const& sink);
  /// The same to anybody: blocks in the order of their offsets, of each run of whole rows. @throws PlanError as above
  void write(StoredPiece const& piece, Slice const& wanted, NativeBox<std::byte const> const& in, WriteBytes const& out,
             DigestSink const& sink);
  /// Read some rows of one expert's stored matrix whole, for several who hold columns of it. Only for parameters of
  /// which such columns are read with the whole rows (`Parameter::read_for`). @throws as `read`
  void read_rows(StoredPiece const& piece, std::uint64_t expert, Range stored_rows, PieceFiles const& files,
                 std::span<RowsFor const> to);
  /// Turn what `read_rows` gave for the rows of `out`. With a device, that is host memory, free when this returns.
  /// @throws DeviceError
  void place_rows(StoredPiece const& piece, std::uint64_t expert, Range stored_rows, std::byte const* values,
                  NativeBox<std::byte> const& out);
  /// Only digest. @throws IoError, FormatError
  void digest(StoredPiece const& piece, Slice const& wanted, PieceFiles const& files, DigestSink const& sink);

 private:
  struct Matrix;
  struct Strip;
  template <typename Step>
  void for_each_strip(StoredPiece const& piece, Slice const& wanted, Step const& step) const;
  template <typename Step>
  void for_each_strip(Matrix const& matrix, Range rows, Step const& step) const;
  [[nodiscard]] Parameter const& parameter_of(StoredPiece const& piece) const;
  [[nodiscard]] bool is_swapped(StoredPiece const& piece) const;
  [[nodiscard]] bool converts(StoredPiece const& piece) const;
  void require_no_codes(StoredPiece const& piece) const;
  void read_scales(StoredPiece const& piece, Slice const& wanted, PieceFiles const& files, DigestSink const& sink);
  [[nodiscard]] MatrixView read_strip(Matrix const& matrix, Strip const& strip, FileReader& file);
  [[nodiscard]] MatrixView wanted_of(Matrix const& matrix, Strip const& strip, MatrixView const& read,
                                     DigestSink const& sink) const;
  [[nodiscard]] MatrixView convert_strip(Matrix const& matrix, Strip const& strip, MatrixView const& in,
                                         DigestSink const& sink);
  void turn(Matrix const& matrix, Strip const& strip, MatrixView const& values, NativeBox<std::byte> const& out);
  void convert_block(StoredPiece const& piece, std::uint64_t offset, std::span<std::byte const> in,
                     std::span<std::byte> out, DigestSink const& sink);
  [[nodiscard]] std::span<std::byte> last_stop(std::vector<std::byte>& on_host, std::uint64_t bytes);
  [[nodiscard]] std::span<std::byte const> turn_back(Matrix const& matrix, Strip const& strip,
                                                     NativeBox<std::byte const> const& in);
  [[nodiscard]] std::span<std::byte const> narrow(StoredPiece const& piece, std::span<std::byte const> native);
  void write_strip(Matrix const& matrix, Strip const& strip, std::span<std::byte const> bytes, WriteBytes const& out,
                   DigestSink const& sink);
  void write_run(StoredPiece const& piece, std::uint64_t offset, std::span<std::byte const> bytes,
                 WriteBytes const& out, DigestSink const& sink);
  [[nodiscard]] std::uint64_t element_at(StoredPiece const& piece, std::uint64_t offset) const;
  void add(StoredPiece const& piece, std::uint64_t offset, std::span<std::byte const> bytes,
           DigestSink const& sink) const;
  void add_converted(StoredPiece const& piece, std::uint64_t offset, std::span<std::byte const> values,
                     DigestSink const& sink) const;
  void done(std::uint64_t bytes) const {
    if (done_) done_(bytes);
  }

  Model const& model_;
  Form form_;
  BlockDone done_;
  Device* device_;
  std::vector<std::byte> staging_;    // as in the file
  std::vector<std::byte> converted_;  // on its way to or from the file
  std::vector<std::byte> widened_;    // as what was written will be read
  PieceScales scales_;
};

}  // namespace rankslice

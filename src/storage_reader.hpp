#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "rankslice/checkpoint.hpp"
#include "rankslice/options.hpp"

#include "io/file.hpp"
#include "io/read_ahead.hpp"
#include "io/read_choice.hpp"
#include "io/window_reader.hpp"
#include "plan/plan.hpp"
#include "transform/transfer.hpp"

namespace rankslice {

/// Called for every piece that holds something of a slice, with what it holds of it.
using PieceStep = std::function<void(StoredPiece const& piece, Slice const& slice, PieceFiles const& files)>;

/// How the files of a storage are opened.
using OpenFile = std::function<std::unique_ptr<FileReader>(std::string const& path)>;

/// What a StorageReader will be asked for.
struct ExpectedReads {
  std::vector<Extent> extents{};  ///< In the order of the requests; empty when it is not known.
  ReadOptions how{};
  std::optional<std::vector<Extent>> alone{};  ///< Those of them that no other rank of this host reads; nothing: all.
};

/// The files of a storage, opened when first needed, and watched: a file that is not the size the headers speak of, or
/// that is replaced or written to while it is read, is an error.
class StorageReader {
 public:
  /// Both outlive the reader. Files are read through `open`, if given, whatever `reads.how` says. One thread uses it.
  /// @throws IoError, FormatError for files that it looks at, or when it cannot read as it is asked to
  StorageReader(Storage const& storage, Model const& model, ExpectedReads reads = {}, OpenFile open = {});

  /// @throws IoError, FormatError, PlanError when the storage lacks something of the slice.
  void for_each_piece(PlannedSlice const& wanted, PieceStep const& step);

  /// A file of the storage. @throws IoError, FormatError
  [[nodiscard]] FileReader& file(std::uint32_t index);

  /// The files of one of its pieces. @throws IoError, FormatError
  [[nodiscard]] PieceFiles files_of(StoredPiece const& piece);

  /// Every file that was read is still what it was when it was opened. @throws IoError
  void check_unchanged() const;

  /// How what was expected has been read so far; nothing is wanted where that is not known.
  [[nodiscard]] ReadPart part() const;
  /// All of it has been read: as `check_unchanged`, and who wants to know is told how.
  void finish() const;

 private:
  struct OpenedFile {
    std::unique_ptr<FileReader> reader;
    FileIdentity identity;
  };
  void read_ahead(ReadBackend asked);
  [[nodiscard]] UniqueFd open_for_blocks(std::uint32_t index);
  [[nodiscard]] std::unique_ptr<FileReader> as_expected(std::unique_ptr<FileReader> file, std::uint32_t index);

  Storage const& storage_;
  Model const& model_;
  OpenFile open_file_;
  ReadChoice choice_;
  std::function<void(ReadPart const&)> tell_;
  std::uint64_t wanted_ = 0;              // bytes that are expected
  std::vector<std::vector<Range>> runs_;  // by file, that `pread` reads; empty when they are not known
  ReadWindows windows_;
  std::vector<OpenedFile> open_;
  std::unique_ptr<ReadAhead> ahead_;
};

}  // namespace rankslice

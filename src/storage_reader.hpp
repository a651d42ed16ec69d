#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "rankslice/checkpoint.hpp"

#include "io/file.hpp"
#include "plan/plan.hpp"
#include "transform/transfer.hpp"

namespace rankslice {

/// Called for every stretch of a part that is contiguous in one file.
using Stretch = std::function<void(Range part, FileReader& file, TensorPlace place)>;

/// The files of a storage, opened when first needed, and watched: a file that is not the size the headers speak of, or
/// that is replaced or written to while it is read, is an error.
class StorageReader {
 public:
  /// Both outlive the reader.
  StorageReader(Storage const& storage, std::vector<Parameter> const& parameters);

  /// @throws IoError, FormatError, PlanError when the storage lacks a piece of the part.
  void for_each_stretch(PlannedPart const& wanted, Stretch const& step);

  /// Every file that was read is still what it was when it was opened. @throws IoError
  void check_unchanged() const;

 private:
  FileReader& file(std::uint32_t index);
  [[nodiscard]] TensorPlace place_at(std::uint32_t parameter, Extent const& extent) const;

  struct OpenFile {
    std::unique_ptr<FileReader> reader;
    FileIdentity identity;
  };
  Storage const& storage_;
  std::vector<Parameter> const& parameters_;
  std::vector<OpenFile> open_;  // by file index
};

/// Digest the parts of a plan as `storage` holds them.
[[nodiscard]] Digests digest_parts(std::vector<Parameter> const& parameters, std::vector<PlannedPart> const& plan,
                                   Storage const& storage, BlockDone const& done);

}  // namespace rankslice

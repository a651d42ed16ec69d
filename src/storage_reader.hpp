#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "rankslice/checkpoint.hpp"
#include "rankslice/options.hpp"

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

/// Gives the native bytes of parts to those who write them.
class NativeSource {
 public:
  virtual ~NativeSource() = default;
  /// Call `use(part, bytes)` for consecutive pieces of `wanted`, each of whole units and contiguous in the native form.
  virtual void for_each_piece(PlannedPart const& wanted,
                              std::function<void(Range part, std::byte const* native)> const& use) = 0;
};

/// Write the parts of a plan from `source` to `target`, whose files exist at their full size; sync and close them.
/// Returns the digests of what was handed to the files.
[[nodiscard]] Digests write_parts(std::vector<Parameter> const& parameters, std::vector<PlannedPart> const& plan,
                                  NativeSource& source, Storage const& target, BlockDone const& done);

/// Digest the parts of a plan as `storage` holds them.
[[nodiscard]] Digests digest_parts(std::vector<Parameter> const& parameters, std::vector<PlannedPart> const& plan,
                                   Storage const& storage, BlockDone const& done);

/// Read the written parts back. @throws VerifyError naming the first tensor that is not what was written.
void check_read_back(std::vector<Parameter> const& parameters, std::vector<PlannedPart> const& plan,
                     Storage const& target, Digests const& written, BlockDone const& done);

/// Bytes of the parts of a plan in a form.
[[nodiscard]] std::uint64_t plan_bytes(std::vector<Parameter> const& parameters, std::vector<PlannedPart> const& plan,
                                       Form form);

/// What a long call does after every block: tell the other ranks and the caller, and stop when asked to.
/// `world` may be null.
[[nodiscard]] BlockDone watch(CallOptions const& call, std::string_view phase, std::uint64_t total_bytes,
                              Communicator* world);

/// Empty digests for the parameters: sums to add to.
[[nodiscard]] Digests empty_digests(std::vector<Parameter> const& parameters);

}  // namespace rankslice

#pragma once

#include <string>
#include <vector>

namespace rankslice {

/// A file or folder that is filled under a temporary name beside its final one (`OUT.partial-…`) and renamed when it
/// is whole. One rank (rank 0) owns it; the others write below `path()`. Dropped without `publish`, it removes itself.
class StagedOutput {
 public:
  enum class Kind { file, folder };
  /// Check that `final_path` may be made (its parent exists; it does not, or is an empty folder, or `overwrite` is set
  /// and it is of the same kind), and make the temporary folder, or reserve the temporary name of a file.
  /// @throws IoError `cannot_create`.
  StagedOutput(std::string final_path, Kind kind, bool overwrite);
  ~StagedOutput();
  StagedOutput(StagedOutput const&) = delete;
  StagedOutput& operator=(StagedOutput const&) = delete;

  [[nodiscard]] std::string const& path() const { return temporary_; }
  /// What earlier runs left behind beside the final path: `OUT.partial-…` of theirs.
  [[nodiscard]] std::vector<std::string> const& leftovers() const { return leftovers_; }
  /// Sync the folder and those in it (their files are synced by who wrote them), rename it to the final name (exchanged
  /// with what stood there, which is then removed) and sync the parent.
  /// @throws IoError: `cannot_create` when something has taken the final name meanwhile, `io` otherwise. What stood
  /// there stays, except when the message says that the new output is in place.
  void publish();

 private:
  void replace_existing();

  std::string final_, temporary_;
  std::vector<std::string> leftovers_;
  Kind kind_;
  bool overwrite_, published_ = false;
};

/// fsync of a directory, so that the names in it survive a power cut. @throws IoError
void sync_directory(std::string const& path);

}  // namespace rankslice

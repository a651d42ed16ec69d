#pragma once

#include <optional>
#include <string>
#include <vector>

#include "io/progress_file.hpp"

namespace rankslice {

/// A file or folder that is filled under a temporary name beside its final one (`OUT.partial-…`) and renamed when it
/// is whole. One rank (rank 0) owns it; the others write below `path()`. Dropped without `publish`, it removes itself,
/// unless it is what an earlier process left.
///
/// With a resume key, of all that decides its bytes, it has the same temporary name in every process, and beside that a
/// `ProgressFile`: what a process leaves that was killed, or told it to stay, the next one takes over. One that another
/// process has taken over, where the file system has no locks, it neither publishes nor removes.
class StagedOutput {
 public:
  enum class Kind { file, folder };
  /// Check that `final_path` may be made (its parent exists; it does not, or is an empty folder, or `overwrite` is set
  /// and it is of the same kind), and make the temporary folder, or reserve the temporary name of a file.
  /// @throws IoError `cannot_create`, also when another process fills the output of this key; `io`
  StagedOutput(std::string final_path, Kind kind, bool overwrite, std::string const& resume_key = {});
  ~StagedOutput();
  StagedOutput(StagedOutput const&) = delete;
  StagedOutput& operator=(StagedOutput const&) = delete;

  [[nodiscard]] std::string const& path() const { return temporary_; }
  [[nodiscard]] std::string const& final_path() const { return final_; }
  /// Whether it has its final name.
  [[nodiscard]] bool published() const { return published_; }
  /// What other runs left behind beside the final path: `OUT.partial-…` of theirs.
  [[nodiscard]] std::vector<std::string> const& leftovers() const { return leftovers_; }
  /// These in words, and that another process may be at work here, where the file system cannot tell.
  [[nodiscard]] std::vector<std::string> warnings() const;

  /// Whether an earlier process of the same key left what is there: files of which some, or all, may be incomplete.
  [[nodiscard]] bool taken_over() const { return taken_over_; }
  /// What of that is complete. Null without a resume key.
  [[nodiscard]] ProgressFile* progress() { return progress_ ? &*progress_ : nullptr; }
  /// Leave it there for the next process, if it has a resume key and is not published.
  void keep_unfinished() { keep_ = true; }
  /// Remove it when it is dropped, also what an earlier process left.
  void remove_unfinished() { keep_ = false; }

  /// Sync the folder and those in it (their files are synced by who wrote them), rename it to the final name (exchanged
  /// with what stood there, which is then removed) and sync the parent.
  /// @throws IoError: `cannot_create` when something has taken the final name meanwhile, `io` otherwise. What stood
  /// there stays, except when the message says that the new output is in place.
  void publish();

 private:
  void reserve_name();
  void make(std::string const& resume_key);
  void take_over(std::string const& resume_key);
  void replace_existing();
  void leave_name_of_key();

  std::string final_, temporary_;
  std::vector<std::string> leftovers_;
  std::optional<ProgressFile> progress_;
  Kind kind_;
  bool overwrite_, taken_over_ = false, keep_ = false, published_ = false;
};

}  // namespace rankslice

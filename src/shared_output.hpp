#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "rankslice/communicator.hpp"
#include "rankslice/options.hpp"

#include "io/staged_output.hpp"

namespace rankslice {

/// A staged output that all ranks write to and rank 0 owns. Every function that is no accessor is collective. Destroyed
/// without `publish`, rank 0 removes what was written, but not what an earlier run left; see `fill`.
class SharedOutput {
 public:
  using Records = std::map<std::string, std::vector<std::uint64_t>>;

  /// `notice` is given what people should know of an output with a resume key.
  SharedOutput(std::string const& final_path, StagedOutput::Kind kind, bool overwrite, Communicator& world,
               std::string const& resume_key = {}, std::function<void(Notice const&)> notice = {});

  [[nodiscard]] std::string const& path() const { return path_; }
  /// As `StagedOutput::taken_over`. The same on every rank.
  [[nodiscard]] bool taken_over() const { return taken_over_; }
  /// The sums of the segments that are complete, by name. The same on every rank.
  [[nodiscard]] Records const& recorded() const { return recorded_; }

  /// Segments that are complete on stable storage, the same on every rank. Without a resume key nobody will ask.
  void record(std::vector<SegmentRecord> const& segments);
  /// Segments that are not, after all; the same on every rank.
  void forget(std::vector<std::string> const& names);

  /// Run what writes and publishes the output. What is thrown there decides what becomes of the segments that are
  /// recorded: Interrupted and CommError leave them for a later run of the same key, everything else removes them.
  void fill(std::function<void()> const& step);
  void publish();

 private:
  void share_what_is_there();
  void keep_unfinished();
  void tell(std::string text) const;

  Communicator& world_;
  std::function<void(Notice const&)> notice_;
  std::unique_ptr<StagedOutput> staged_;  // on rank 0
  std::string path_;
  bool taken_over_ = false;
  Records recorded_;
};

/// The folders between `folder` and the file `name` below it.
void make_parent_folders(std::string const& folder, std::string const& name);

}  // namespace rankslice

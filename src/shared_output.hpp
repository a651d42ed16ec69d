#pragma once

#include <memory>
#include <string>

#include "rankslice/communicator.hpp"

#include "io/staged_output.hpp"

namespace rankslice {

/// A staged output that all ranks write to and rank 0 owns. Its construction and `publish` are collective; destroyed
/// without `publish`, rank 0 removes what was written.
class SharedOutput {
 public:
  SharedOutput(std::string const& final_path, StagedOutput::Kind kind, bool overwrite, Communicator& world);

  [[nodiscard]] std::string const& path() const { return path_; }
  void publish();

 private:
  Communicator& world_;
  std::unique_ptr<StagedOutput> staged_;  // on rank 0
  std::string path_;
};

/// The folders between `folder` and the file `name` below it.
void make_parent_folders(std::string const& folder, std::string const& name);

}  // namespace rankslice

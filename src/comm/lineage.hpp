#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "rankslice/communicator.hpp"

namespace rankslice {

/// A communicator among those that were split from one, on this rank. A failure that the ranks of one agreed on takes
/// them out of its parts together, but not out of what it was split from, where there may be others.
class Lineage {
 public:
  [[nodiscard]] Lineage part() const {
    auto part = *this;
    part.line_.push_back(++family_->parts);
    return part;
  }
  /// Of this communicator.
  void note_agreement(Outcome const& agreed) { family_->failed = agreed.code == ExitCode::done ? kNone : line_.back(); }
  /// Whether the last agreement of all was on a failure, and among all ranks of this communicator.
  [[nodiscard]] bool failed_together() const {
    return std::find(line_.begin(), line_.end(), family_->failed) != line_.end();
  }

 private:
  static constexpr int kNone = -1;
  struct Family {
    int parts = 0;
    int failed = kNone;  ///< The communicator of the last agreement, if it was on a failure.
  };

  std::shared_ptr<Family> family_ = std::make_shared<Family>();
  std::vector<int> line_{0};  ///< From the one that all come from to this one.
};

}  // namespace rankslice

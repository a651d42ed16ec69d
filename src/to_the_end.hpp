#pragma once

#include <exception>
#include <functional>

#include "rankslice/communicator.hpp"

namespace rankslice {

/// Note [To the end]. A rank that fails alone while bytes travel must not leave the others waiting for what never
/// comes. So it goes through the rest of the step: it sends anything instead of what it cannot get, receives what it no
/// longer wants, and only then lets its error out, into the agreement that ends the step on every rank. Where it is the
/// communicator that fails, nothing can be brought to an end: then the rank gives up for all, with what it was told.

/// What one rank does in steps in which bytes travel between ranks.
class ToTheEnd {
 public:
  /// `world` outlives the result.
  explicit ToTheEnd(Communicator& world) : world_(world) {}

  /// What may fail on this rank alone: does nothing any more after the first failure, which is kept.
  void attempt(std::function<void()> const& step);
  /// What makes bytes travel: its failure ends the job. @throws CommError, also in all later calls
  void carry(std::function<void()> const& step);

  [[nodiscard]] bool failed() const { return failed_ != nullptr; }
  /// The failure that was kept, if there is one.
  void let_out() const;

 private:
  Communicator& world_;
  std::exception_ptr failed_;  // why this rank no longer has what it should send
  std::exception_ptr broken_;  // why nothing travels any more
};

}  // namespace rankslice

#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "rankslice/options.hpp"

namespace rankslice {

/// A time of this rank, in nanoseconds of its own steady clock.
struct Span {
  std::string name;
  std::string_view kind;  ///< "phase"; "blocks" of a phase; "wait" for the other ranks at its end
  std::int64_t begin_ns = 0, end_ns = 0;
  bool failed = false;  ///< Of a phase: an error ended it.
  // Of blocks:
  std::uint64_t blocks = 0, bytes = 0;
  std::int64_t longest_ns = 0;  ///< From the end of one block to that of the next.
};

/// What this rank did when: its phases, one inside the other, and the blocks of bytes in them. Local.
class Timeline {
 public:
  /// Open from its construction to `close`, or as failed to the end of its scope.
  class Phase {
   public:
    Phase(Timeline& timeline, std::string name);
    ~Phase();
    Phase(Phase const&) = delete;
    Phase& operator=(Phase const&) = delete;
    /// Returns the nanoseconds that it took.
    std::int64_t close();

   private:
    Timeline& timeline_;
    bool open_ = true;
  };

  /// One more block is done.
  void add_block(Progress const& progress);
  /// From the end of the last phase until now this rank waited for the others.
  void add_wait();

  /// The innermost phase that is open, or else the one that an error ended; empty outside of phases.
  [[nodiscard]] std::string const& phase() const;
  /// What has ended, in the order of the ends.
  [[nodiscard]] std::vector<Span> const& spans() const { return spans_; }
  /// As the last block of the phase that is open told it; nothing before its first one.
  [[nodiscard]] Progress const& progress() const { return progress_; }

 private:
  struct Open {
    Span span;
    Span blocks;                ///< Without a name: there are none.
    std::int64_t mark_ns = 0;   ///< Where the last thing in it ended.
    std::uint64_t counted = 0;  ///< Of the bytes of `blocks`, as progress counts them.
  };
  std::int64_t end_phase(bool failed);
  void end_blocks(Open& phase);

  std::vector<Open> open_;
  std::vector<Span> spans_;
  std::string failed_;
  Progress progress_;
  std::string progress_phase_;  // what `progress_` refers to
};

/// Now, by the steady clock.
[[nodiscard]] std::int64_t steady_ns();

}  // namespace rankslice

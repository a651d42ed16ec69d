#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "rankslice/options.hpp"

#include "facts/words.hpp"

namespace rankslice::cli {

/// How a rank has read tensors in all calls of a command.
class Readings {
 public:
  void add(ReadPart const& part);

  /// "direct", or "direct, pread" where parts were read by several ways, by bytes; null where nothing was read.
  [[nodiscard]] Json ways() const;
  /// One for each way: why, and how much.
  [[nodiscard]] std::vector<std::string> lines() const;
  /// The most that read at the same time.
  [[nodiscard]] int threads() const { return threads_; }

 private:
  struct Sum {
    std::uint64_t wanted = 0, read = 0, by_pread = 0;
    std::string why;  // of the first part
    bool why_differs = false;
  };
  [[nodiscard]] std::vector<ReadBackend> by_bytes() const;

  std::map<ReadBackend, Sum> sums_;
  int threads_ = 0;
};

}  // namespace rankslice::cli

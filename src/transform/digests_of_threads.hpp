#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <vector>

#include "rankslice/digest.hpp"

namespace rankslice {

/// A table for each of several threads: the first one's is that which gets the sums of all. Where that is null nothing
/// is digested, and there are none.
class DigestsOfThreads {
 public:
  DigestsOfThreads(Model const& model, Digests* sums, std::size_t threads) : sums_(sums) {
    if (sums != nullptr) of_others_.resize(threads - 1, Digests(model));
  }

  [[nodiscard]] Digests* of(std::size_t thread) {
    return sums_ == nullptr || thread == 0 ? sums_ : &of_others_[thread - 1];
  }
  /// When all threads have ended.
  void sum() {
    for (auto const& other : of_others_) {
      add(other.source, sums_->source);
      add(other.stored, sums_->stored);
    }
  }

 private:
  static void add(DigestTable const& part, DigestTable& sum) {
    std::ranges::transform(part.values(), sum.values(), sum.values().begin(), std::plus());
  }

  Digests* sums_;
  std::vector<Digests> of_others_;
};

}  // namespace rankslice

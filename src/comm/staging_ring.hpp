#pragma once

#include <cstddef>
#include <span>

namespace rankslice {

/// Memory that is taken in pieces and given back in the same order. A piece is not cut in two, so that one of at most
/// half the memory always finds room when all is given back.
class StagingRing {
 public:
  static constexpr std::size_t kAlignment = 16;  ///< What NCCL copies fastest.

  StagingRing() = default;
  explicit StagingRing(std::span<std::byte> memory) : memory_(memory) {}

  /// Null where there is no room for it now.
  [[nodiscard]] std::byte* take(std::size_t bytes) {
    auto const wanted = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    auto const to_the_end = memory_.size() - end_ % memory_.size();
    auto const begin = wanted <= to_the_end ? end_ : end_ + to_the_end;
    if (begin + wanted - begin_ > memory_.size()) return nullptr;
    end_ = begin + wanted;
    return memory_.data() + begin % memory_.size();
  }

  /// What was taken up to now: to give it back, or to forget what is taken after it.
  [[nodiscard]] std::size_t mark() const { return end_; }
  void give_back_until(std::size_t mark) { begin_ = mark; }
  void forget_since(std::size_t mark) { end_ = mark; }

 private:
  std::span<std::byte> memory_;
  std::size_t begin_ = 0;  ///< Both count on and on; the place in the memory is the remainder.
  std::size_t end_ = 0;
};

}  // namespace rankslice

#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

namespace rankslice {

/// XXH3-128 of bytes that come piece by piece. Tells corruption from health, not friend from foe.
class Xxh3Stream {
 public:
  Xxh3Stream();
  ~Xxh3Stream();
  Xxh3Stream(Xxh3Stream&&) noexcept;
  Xxh3Stream& operator=(Xxh3Stream&&) noexcept;

  void add(std::span<std::byte const> bytes);
  /// 32 hex digits, high half first, of everything added so far.
  [[nodiscard]] std::string hex() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// The same of one piece.
[[nodiscard]] std::string xxh3_128(std::span<std::byte const> bytes);

}  // namespace rankslice

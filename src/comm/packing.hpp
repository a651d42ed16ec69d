#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "rankslice/error.hpp"

namespace rankslice {

// Small messages between ranks. All ranks run the same build on the same kind of machine, so numbers travel as they lie
// in memory; text follows its size.

class Packer {
 public:
  template <typename Number>
  requires std::is_trivially_copyable_v<Number>
  void put(Number value) { append(std::as_bytes(std::span(&value, 1))); }
  void put(std::string const& text) {
    put(std::uint64_t{text.size()});
    append(std::as_bytes(std::span(text)));
  }

  std::vector<std::byte> bytes;

 private:
  void append(std::span<std::byte const> more) { bytes.insert(bytes.end(), more.begin(), more.end()); }
};

/// Takes out what a `Packer` put in, in the same order. @throws CommError where the bytes end early, or late.
class Unpacker {
 public:
  explicit Unpacker(std::span<std::byte const> bytes) : rest_(bytes) {}

  template <typename Number>
  requires std::is_trivially_copyable_v<Number>
  void get(Number& value) {
    auto const source = take(sizeof value);
    std::memcpy(&value, source.data(), source.size());
  }
  void get(std::string& text) {
    std::uint64_t size = 0;
    get(size);
    auto const source = take(size);
    text.resize(source.size());
    std::transform(source.begin(), source.end(), text.begin(), [](std::byte b) { return static_cast<char>(b); });
  }
  void expect_end() const {
    if (!rest_.empty()) throw CommError(ExitCode::bad_launch, "a message between ranks is too long");
  }

 private:
  std::span<std::byte const> take(std::uint64_t size) {
    if (size > rest_.size()) throw CommError(ExitCode::bad_launch, "a message between ranks is cut short");
    auto const taken = rest_.first(size);
    rest_ = rest_.subspan(size);
    return taken;
  }

  std::span<std::byte const> rest_;
};

}  // namespace rankslice

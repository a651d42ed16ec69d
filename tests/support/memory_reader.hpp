#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "rankslice/tensor_catalog.hpp"

#include "io/file.hpp"

namespace rankslice::test {

/// A file in memory, which may have a byte that cannot be read.
class MemoryReader : public FileReader {
 public:
  explicit MemoryReader(std::vector<std::byte> bytes, std::string path = "memory") noexcept
      : bytes_(std::move(bytes)), path_(std::move(path)) {}

  /// Every read that includes this byte fails, as a damaged disk does.
  void fail_at(std::uint64_t offset) { failing_ = offset; }
  /// The bytes that were asked for, in order.
  [[nodiscard]] std::vector<Range> const& reads() const { return reads_; }

  [[nodiscard]] std::string const& path() const override { return path_; }
  [[nodiscard]] FileIdentity identity() const override { return {.size = bytes_.size()}; }
  void read(std::span<std::byte> out, std::uint64_t offset) override;

 private:
  std::vector<std::byte> bytes_;
  std::string path_;
  std::optional<std::uint64_t> failing_;
  std::vector<Range> reads_;
};

}  // namespace rankslice::test

#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "rankslice/device.hpp"

namespace rankslice::test {

/// A device on the CPU that takes its users by their word: uploads happen as late as the contract allows, memory that
/// it gives out is full of garbage, and so is a staging block when it comes again. Whoever breaks the contract gets a
/// std::logic_error.
class LateDevice final : public Device {
 public:
  /// How many calls will go well; the one after them throws DeviceError.
  std::uint64_t calls_until_failure = UINT64_MAX;

  /// For those who ask what it is.
  std::string says_it_is = "late";

  [[nodiscard]] std::string_view kind() const override { return says_it_is; }
  [[nodiscard]] int index() const override { return 0; }
  [[nodiscard]] std::string const& name() const override { return name_; }
  [[nodiscard]] std::shared_ptr<std::byte> allocate(std::uint64_t bytes) override;
  [[nodiscard]] std::uint64_t peak_bytes() const override { return memory_->peak; }
  [[nodiscard]] std::span<std::byte> staging(std::uint64_t bytes) override;
  void upload(std::span<std::byte const> staged, std::byte* to) override;
  void upload_transposed(std::byte const* staged, std::uint64_t rows, std::uint64_t columns, std::uint64_t stride,
                         std::uint64_t element_bytes, std::byte* to, std::uint64_t to_stride) override;
  void download(std::byte const* from, std::span<std::byte> to) override;
  void digest(std::span<DigestBox const> boxes, std::span<std::uint64_t> sums) override;
  void finish() override;

  [[nodiscard]] std::uint64_t held_bytes() const { return memory_->held; }
  [[nodiscard]] std::uint64_t uploads() const { return uploads_; }

 private:
  /// What is allocated, by address: known to those who release it, too.
  struct Memory {
    std::map<std::byte const*, std::uint64_t> blocks;
    std::uint64_t held = 0, peak = 0;
    [[nodiscard]] bool has(std::byte const* first, std::uint64_t bytes) const;
    void take(std::uint64_t bytes);
  };
  /// An upload that was asked for, with what was in its staging block then.
  struct Upload {
    std::span<std::byte const> staged;
    std::vector<std::byte> as_asked;
    std::function<void()> move;
  };
  struct Block {
    std::vector<std::byte> bytes;
    std::uint64_t largest_matrix = 0;
  };
  void count_call();
  void require_mine(std::byte const* first, std::uint64_t bytes) const;
  void ask(std::span<std::byte const> staged, std::span<std::byte> to, std::function<void()> move);
  void settle();

  std::string name_ = "late:0 (a device for tests)";
  std::shared_ptr<Memory> memory_ = std::make_shared<Memory>();
  std::array<Block, 2> blocks_;
  std::size_t current_ = 0;
  std::array<std::vector<Upload>, 2> asked_;  // of each block
  std::uint64_t uploads_ = 0;
};

}  // namespace rankslice::test

#include "support/late_device.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "rankslice/error.hpp"

#include "support/naive_digest.hpp"

namespace rankslice::test {

namespace {

constexpr std::byte kGarbage{0xdb};

void require(bool holds, std::string const& rule) {
  if (!holds) throw std::logic_error("the contract of Device: " + rule);
}

std::uint64_t word_at(std::byte const* data, std::uint64_t bytes) {
  std::uint64_t word = 0;
  std::memcpy(&word, data, bytes);
  return word;
}

/// q(e) from the definition.
std::uint64_t weigh(DigestBox const& box, std::uint64_t entry) {
  auto const word_bytes = std::min<std::uint64_t>(4, box.element_bytes);
  auto const halves = box.element_bytes / word_bytes;
  auto const line_factor = box.swapped ? fc_of : fr_of;
  auto const position_factor = box.swapped ? fr_of : fc_of;
  auto const line_halves = box.swapped ? halves : 1;  // columns count words
  auto const position_halves = box.swapped ? 1 : halves;
  std::vector<std::uint64_t> factors(box.length * position_halves);
  for (std::uint64_t i = 0; i < factors.size(); ++i) {
    factors[i] = position_factor(box.first_position * position_halves + i);
  }
  std::uint64_t sum = 0;
  for (std::uint64_t line = 0; line < box.lines; ++line) {
    auto const* const data = box.data + (entry * box.entry_stride + line * box.line_stride) * box.element_bytes;
    for (std::uint64_t word = 0; word < box.length * halves; ++word) {
      auto const value = word_at(data + word * word_bytes, word_bytes) + 1;
      auto const on_line = (box.first_line + line) * line_halves + (box.swapped ? word % halves : 0);
      sum += line_factor(on_line) * factors[box.swapped ? word / halves : word] * value;
    }
  }
  return sum;
}

}  // namespace

bool LateDevice::Memory::has(std::byte const* first, std::uint64_t bytes) const {
  auto const after = blocks.upper_bound(first);
  if (after == blocks.begin()) return false;
  auto const& [begin, size] = *std::prev(after);
  return first + bytes <= begin + size;
}

void LateDevice::Memory::take(std::uint64_t bytes) {
  held += bytes;
  peak = std::max(peak, held);
}

void LateDevice::require_mine(std::byte const* first, std::uint64_t bytes) const {
  require(bytes == 0 || memory_->has(first, bytes), "addresses are in device memory");
}

void LateDevice::count_call() {
  if (calls_until_failure == 0) throw DeviceError(name_ + ": fails on purpose");
  --calls_until_failure;
}

std::shared_ptr<std::byte> LateDevice::allocate(std::uint64_t bytes) {
  count_call();
  auto* const data = new std::byte[bytes];
  std::fill_n(data, bytes, kGarbage);
  memory_->blocks[data] = bytes;
  memory_->take(bytes);
  return {data, [memory = memory_, bytes](std::byte* released) {
            memory->blocks.erase(released);
            memory->held -= bytes;
            delete[] released;
          }};
}

std::span<std::byte> LateDevice::staging(std::uint64_t bytes) {
  count_call();
  current_ = 1 - current_;
  settle();
  auto& block = blocks_[current_];
  block.bytes.assign(bytes, kGarbage);
  return block.bytes;
}

/// The uploads from the current block, which is to be used again, and nothing else.
void LateDevice::settle() {
  for (auto const& upload : asked_[current_]) {
    require(std::ranges::equal(upload.staged, upload.as_asked), "a staging block stays as it is until it comes again");
    upload.move();
  }
  asked_[current_].clear();
}

void LateDevice::ask(std::span<std::byte const> staged, std::span<std::byte> to, std::function<void()> move) {
  count_call();
  ++uploads_;
  require_mine(to.data(), to.size());
  auto const& block = blocks_[current_].bytes;
  auto const* const end = block.data() + block.size();
  require(block.data() <= staged.data() && staged.data() + staged.size() <= end, "uploads are from the last block");
  auto const if_still_there = [to, move = std::move(move), memory = memory_] {
    if (memory->has(to.data(), to.size())) move();  // after an error elsewhere it may be gone
  };
  asked_[current_].push_back({staged, {staged.begin(), staged.end()}, if_still_there});
}

void LateDevice::upload(std::span<std::byte const> staged, std::byte* to) {
  ask(staged, {to, staged.size()}, [=] { std::ranges::copy(staged, to); });
}

void LateDevice::upload_transposed(std::byte const* staged, std::uint64_t rows, std::uint64_t columns,
                                   std::uint64_t stride, std::uint64_t element_bytes, std::byte* to,
                                   std::uint64_t to_stride) {
  if (rows == 0 || columns == 0) return;
  auto& block = blocks_[current_];
  if (auto const matrix = rows * columns * element_bytes; matrix > block.largest_matrix) {
    memory_->take(matrix - block.largest_matrix);  // as it goes up, before it is transposed
    block.largest_matrix = matrix;
  }
  std::span const from(staged, ((rows - 1) * stride + columns) * element_bytes);
  std::span const target(to, ((columns - 1) * to_stride + rows) * element_bytes);
  ask(from, target, [=] {
    for (std::uint64_t row = 0; row < rows; ++row) {
      for (std::uint64_t column = 0; column < columns; ++column) {
        std::copy_n(staged + (row * stride + column) * element_bytes, element_bytes,
                    to + (column * to_stride + row) * element_bytes);
      }
    }
  });
}

void LateDevice::finish() {
  count_call();
  for (int block = 0; block < 2; ++block) {
    current_ = 1 - current_;
    settle();
  }
}

void LateDevice::download(std::byte const* from, std::span<std::byte> to) {
  finish();
  require_mine(from, to.size());
  std::copy_n(from, to.size(), to.data());
}

void LateDevice::digest(std::span<DigestBox const> boxes, std::span<std::uint64_t> sums) {
  finish();
  auto sum = sums.begin();
  for (auto const& box : boxes) {
    auto const last = (box.entries - 1) * box.entry_stride + (box.lines - 1) * box.line_stride + box.length;
    require_mine(box.data, last * box.element_bytes);
    for (std::uint64_t entry = 0; entry < box.entries; ++entry) *sum++ = weigh(box, entry);
  }
  require(sum == sums.end(), "there is a number for each entry");
}

}  // namespace rankslice::test

#include "io/read_ahead.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "rankslice/error.hpp"

#include "core/literals.hpp"
#include "io/direct_file.hpp"
#include "io/memory.hpp"

namespace rankslice {

namespace {

constexpr std::size_t kMostBlocks = 8;  // under way or not used up, 1 MiB each: more gain little on any disk

constexpr auto kNowhere = SIZE_MAX;

std::uint64_t round_up(std::uint64_t value, std::uint64_t unit) { return (value + unit - 1) / unit * unit; }

std::uint64_t largest(BlockPlan const& plan) {
  std::uint64_t bytes = 0;
  for (auto const& block : plan.blocks) bytes = std::max(bytes, block.bytes.size());
  return bytes;
}

}  // namespace

ReadAhead::ReadAhead(BlockPlan plan, OpenForBlocks open, MakeEngine const& make_engine)
    : plan_(std::move(plan)), open_(std::move(open)), placed_(plan_.blocks.size()) {
  for (auto const& block : plan_.blocks) {
    blocks_.push_back({.requested = block.requested});
    if (files_.size() <= block.file) files_.resize(block.file + 1);
    ++files_[block.file].blocks;
  }
  std::iota(placed_.begin(), placed_.end(), 0U);
  std::ranges::sort(placed_, {},
                    [&](std::uint32_t i) { return std::pair(plan_.blocks[i].file, plan_.blocks[i].bytes.begin); });
  auto const slots = std::min(kMostBlocks, blocks_.size());
  slot_bytes_ = round_up(largest(plan_), kDirectAlignment);
  memory_ = allocate_host(std::max<std::uint64_t>(slots * slot_bytes_, 1_MiB));  // less would not begin at a page
  for (auto slot = slots; slot-- > 0;) free_slots_.push_back(static_cast<std::uint32_t>(slot));
  engine_ = make_engine(static_cast<unsigned>(slots), memory_.span());
}

ReadAhead::~ReadAhead() = default;

std::size_t ReadAhead::serve(std::uint32_t file, std::span<std::byte> out, std::uint64_t offset) {
  auto const index = block_of(file, offset);
  if (index == kNowhere) return 0;
  start_more();
  auto& block = blocks_[index];
  if (block.state == State::planned) free_slots_.empty() ? leave(index) : start(index);
  while (block.state == State::under_way) take_one();
  auto const begin = offset - plan_.blocks[index].bytes.begin;
  if (block.state == State::here && begin >= block.got) give_back(block);  // it came short
  if (block.state == State::left) return 0;
  auto const count = std::min<std::uint64_t>(out.size(), block.got - begin);
  std::memcpy(out.data(), memory_of(block) + begin, count);
  block.requested -= std::min(block.requested, count);
  if (block.requested == 0) give_back(block);
  start_more();
  return count;
}

std::uint64_t ReadAhead::next_block(std::uint32_t file, std::uint64_t offset) const {
  auto const place = [&](std::uint32_t i) { return std::pair(plan_.blocks[i].file, plan_.blocks[i].bytes.begin); };
  auto const next = std::ranges::upper_bound(placed_, std::pair(file, offset), {}, place);
  return next != placed_.end() && plan_.blocks[*next].file == file ? plan_.blocks[*next].bytes.begin : UINT64_MAX;
}

/// The one that holds this byte, if any.
std::size_t ReadAhead::block_of(std::uint32_t file, std::uint64_t offset) const {
  auto const ends = [&](std::uint32_t i) { return std::pair(plan_.blocks[i].file, plan_.blocks[i].bytes.end); };
  auto const found = std::ranges::upper_bound(placed_, std::pair(file, offset), {}, ends);
  if (found == placed_.end()) return kNowhere;
  auto const& block = plan_.blocks[*found];
  return block.file == file && block.bytes.begin <= offset ? *found : kNowhere;
}

void ReadAhead::start_more() {
  while (next_ < blocks_.size() && !free_slots_.empty()) {
    if (blocks_[next_].state == State::planned) start(next_);
    ++next_;
  }
}

void ReadAhead::start(std::size_t index) {
  auto const& planned = plan_.blocks[index];
  auto& file = files_[planned.file];
  if (!file.fd.valid()) file.fd = open_(planned.file);
  auto& block = blocks_[index];
  block.slot = free_slots_.back();
  engine_->start({.fd = file.fd.get(),
                  .to = memory_of(block),
                  .size = static_cast<std::uint32_t>(planned.bytes.size()),
                  .offset = planned.bytes.begin,
                  .tag = index});
  free_slots_.pop_back();
  block.state = State::under_way;
}

void ReadAhead::take_one() {
  auto const [index, got] = engine_->wait();
  auto& block = blocks_[index];
  block.state = State::here;
  block.got = got > 0 ? static_cast<std::uint64_t>(got) : 0;
  file_has_one_less(plan_.blocks[index].file);
  if (block.got > 0) return;
  give_back(block);
  left_out_ += plan_.blocks[index].requested;
}

/// There is no memory for it while others wait to be used up.
void ReadAhead::leave(std::size_t index) {
  blocks_[index].state = State::left;
  left_out_ += plan_.blocks[index].requested;
  file_has_one_less(plan_.blocks[index].file);
}

void ReadAhead::give_back(Block& block) {
  block.state = State::left;
  free_slots_.push_back(block.slot);
}

void ReadAhead::file_has_one_less(std::uint32_t file) {
  if (--files_[file].blocks == 0) files_[file].fd.reset();
}

std::byte* ReadAhead::memory_of(Block const& block) const { return memory_.data.get() + block.slot * slot_bytes_; }

void AheadReader::read(std::span<std::byte> out, std::uint64_t offset) {
  for (std::size_t done = 0; done < out.size();) {
    auto const at = offset + done;
    auto count = ahead_.serve(index_, out.subspan(done), at);
    if (count == 0) {
      count = std::min<std::uint64_t>(out.size() - done, ahead_.next_block(index_, at) - at);
      if (!read_behind(out.subspan(done, count), at)) return file_->read(out, offset);
    }
    done += count;
  }
}

/// False: it ends too early. Who asks for more than that is told so of all that was asked for.
bool AheadReader::read_behind(std::span<std::byte> out, std::uint64_t offset) {
  try {
    file_->read(out, offset);
    return true;
  } catch (FormatError const&) {
    return false;
  }
}

}  // namespace rankslice

#include "support/transfer_checks.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <numeric>

#include "plan/plan.hpp"
#include "support/device_bytes.hpp"
#include "support/late_device.hpp"
#include "support/raw_safetensors.hpp"
#include "support/temp_dir.hpp"

namespace rankslice::test {

namespace {

constexpr std::uint64_t kGuard = 64;
constexpr std::byte kUntouched{0xa5};

std::uint64_t sum_of_sizes(std::vector<Range> const& ranges) {
  return std::accumulate(ranges.begin(), ranges.end(), std::uint64_t{0},
                         [](std::uint64_t sum, Range range) { return sum + range.size(); });
}

void append(std::vector<Range>& ranges, std::vector<Range> const& more) {
  ranges.insert(ranges.end(), more.begin(), more.end());
}

/// Sorted, those that touch in one; nothing twice.
std::vector<Range> merged(std::vector<Range> ranges) {
  std::erase_if(ranges, [](Range range) { return range.empty(); });
  std::ranges::sort(ranges);
  std::vector<Range> joined;
  for (auto const range : ranges) {
    if (joined.empty() || joined.back().end < range.begin) {
      joined.push_back(range);
      continue;
    }
    EXPECT_EQ(joined.back().end, range.begin) << "read twice";
    joined.back().end = range.end;
  }
  return joined;
}

Slice intersection_of(Slice const& a, Slice const& b) {
  auto const both = [](Range x, Range y) {
    auto const begin = std::max(x.begin, y.begin);
    return Range{begin, std::max(begin, std::min(x.end, y.end))};
  };
  return {.part = both(a.part, b.part), .rows = both(a.rows, b.rows)};
}

/// Some more experts and rows around a slice, as far as there are any; of dense tensors some more elements.
Slice larger(ExampleParameter const& example, Slice const& slice) {
  auto const whole = example.whole();
  auto const grow = [](Range range, Range all, std::uint64_t by) {
    return Range{range.begin - std::min(range.begin, by), std::min(all.end, range.end + by)};
  };
  return {.part = grow(slice.part, whole.part, 1), .rows = grow(slice.rows, whole.rows, 2)};
}

/// What is moved, and what it digests to.
struct Move {
  ExampleParameter const& example;
  Form form;
  ExampleFile const& stored;
  Slice const& wanted;
  ExampleDigests digests;

  /// Call step(piece, slice) for what each piece holds of what is wanted, be it nothing.
  template <typename Step>
  void for_pieces(Step const& step) const {
    for (auto const& piece : stored.pieces) step(piece, intersection_of(piece.slice, wanted));
  }
  [[nodiscard]] std::vector<Range> bytes_of(StoredPiece const& piece, Slice const& slice) const {
    return bytes_of_slice(example, form, piece, slice);
  }
  /// What is to be read of a piece to get at a slice (idea 3 of the design: pieces under 64 KiB are read as whole
  /// rows).
  [[nodiscard]] std::vector<Range> reads_of(StoredPiece const& piece, Slice const& slice) const {
    if (slice.empty()) return {};
    auto read = slice;
    auto const strided =
        form == Form::hf && example.parameter().stacked_experts && example.parameter().layout == Layout::swapped;
    if (strided && slice.rows.size() * example.element_bytes(form) < 65536) read.rows = example.whole().rows;
    return bytes_of(piece, read);
  }
};

/// The box as a file of its own, with guards around it, of which only what is wanted is filled.
Bytes expected_box(Move const& move, Slice const& box) {
  auto const size = move.example.native_of(box).size();
  Bytes expected(kGuard + size + kGuard, kUntouched);
  StoredPiece const of_box{.slice = box, .extent = {.file = 0, .bytes = {kGuard, kGuard + size}}};
  auto const values = move.example.native_of(move.wanted);
  auto next = values.begin();
  for (auto const bytes : bytes_of_slice(move.example, Form::native, of_box, move.wanted)) {
    std::copy_n(next, bytes.size(), expected.begin() + std::ptrdiff_t(bytes.begin));
    next += std::ptrdiff_t(bytes.size());
  }
  return expected;
}

/// [part, rows, columns] of a slice as [part, columns, rows].
Bytes swapped_axes(ExampleParameter const& example, Slice const& slice, std::span<std::byte const> native) {
  auto const rows = slice.rows.size();
  auto const columns = example.parameter().columns();
  auto const unit = example.element_bytes(Form::native);
  Bytes swapped(native.size());
  for (std::uint64_t i = 0; i < native.size() / unit; ++i) {
    auto const [part, row, column] = std::array{i / columns / rows, i / columns % rows, i % columns};
    auto const to = (part * columns + column) * rows + row;
    std::ranges::copy(native.subspan(i * unit, unit), swapped.begin() + std::ptrdiff_t(to * unit));
  }
  return swapped;
}

/// In what order values may be in memory.
std::vector<bool> ways_to_lie(Move const& move) {
  auto const is_swapped = move.form == Form::hf && move.example.parameter().layout == Layout::swapped;
  return is_swapped ? std::vector{false, true} : std::vector{false};
}

void expect_read(Move const& move, Slice const& box, bool swapped) {
  auto const& [example, form, stored, wanted, digests] = move;
  auto const size = example.native_of(box).size();
  Bytes out(kGuard + size + kGuard, kUntouched);
  Reported reported;
  Sums sums(example);
  MemoryReader file(stored.bytes);
  Transfer transfer(example.model, form, reported.hook());
  std::vector<Range> reads, planned;
  move.for_pieces([&](StoredPiece const& piece, Slice const& slice) {
    transfer.read(piece, slice, {file}, {.data = out.data() + kGuard, .slice = box, .swapped = swapped}, sums.sink());
    append(reads, move.reads_of(piece, slice));
    append(planned, read_ranges(example.model, form, {&piece, slice}));
  });

  auto expected = expected_box(move, box);
  auto const values = std::span(expected).subspan(kGuard, size);
  if (swapped) std::ranges::copy(swapped_axes(example, box, values), values.begin());
  EXPECT_TRUE(out == expected) << "bytes differ" << (swapped ? ", swapped" : "");
  sums.expect(digests);
  EXPECT_EQ(reported.bytes, sum_of_sizes(reads));
  EXPECT_EQ(merged(file.reads()), merged(reads));
  EXPECT_EQ(merged(planned), merged(reads));
}

/// The same into the memory of a device, which digests it there.
void expect_read_to_device(Move const& move, Slice const& box) {
  auto const& [example, form, stored, wanted, digests] = move;
  auto const expected = expected_box(move, box);
  LateDevice device;
  auto const memory = upload(device, Bytes(expected.size(), kUntouched));
  Reported reported;
  Sums sums(example);
  MemoryReader file(stored.bytes);
  Transfer transfer(example.model, form, reported.hook(), &device);
  std::vector<Range> reads;
  move.for_pieces([&](StoredPiece const& piece, Slice const& slice) {
    transfer.read(piece, slice, {file}, {.data = memory.get() + kGuard, .slice = box}, sums.sink());
    append(reads, move.reads_of(piece, slice));
  });
  Bytes out(expected.size());
  device.download(memory.get(), out);
  EXPECT_TRUE(out == expected) << "bytes differ";
  sums.expect(digests);
  EXPECT_EQ(reported.bytes, sum_of_sizes(reads));
  EXPECT_EQ(merged(file.reads()), merged(reads));
}

void expect_digested(Move const& move) {
  auto const& [example, form, stored, wanted, digests] = move;
  Reported reported;
  Sums sums(example);
  MemoryReader file(stored.bytes);
  Transfer transfer(example.model, form, reported.hook());
  std::vector<Range> reads;
  move.for_pieces([&](StoredPiece const& piece, Slice const& slice) {
    transfer.digest(piece, slice, {file}, sums.sink());
    append(reads, move.reads_of(piece, slice));
  });
  sums.expect(digests);
  EXPECT_EQ(reported.bytes, sum_of_sizes(reads));
  EXPECT_EQ(merged(file.reads()), merged(reads));
}

void expect_written(Move const& move, Slice const& box, bool swapped) {
  auto const& [example, form, stored, wanted, digests] = move;
  TempDir dir;
  auto const path = dir.file("out");
  Bytes expected(stored.bytes.size(), kUntouched);
  write_file(path, expected);

  auto const native = example.native_of(box);
  auto const in = swapped ? swapped_axes(example, box, native) : native;
  Reported reported;
  Sums sums(example);
  auto writer = FileWriter::open(path);
  Transfer transfer(example.model, form, reported.hook());
  std::uint64_t written = 0;
  move.for_pieces([&](StoredPiece const& piece, Slice const& slice) {
    transfer.write(piece, slice, {.data = in.data(), .slice = box, .swapped = swapped}, writer, sums.sink());
    for (auto const bytes : move.bytes_of(piece, slice)) {
      std::copy_n(stored.bytes.begin() + std::ptrdiff_t(bytes.begin), bytes.size(),
                  expected.begin() + std::ptrdiff_t(bytes.begin));
      written += bytes.size();
    }
  });
  writer.close();
  EXPECT_TRUE(file_bytes(path) == expected) << "bytes differ" << (swapped ? ", swapped" : "");
  sums.expect(digests);
  EXPECT_EQ(reported.bytes, written);
}

}  // namespace

void Sums::expect(ExampleDigests const& expected) const {
  auto const all = [](DigestTable const& table) {
    std::vector<std::vector<std::uint64_t>> numbers;
    for (std::size_t i = 0; i < table.tensors(); ++i) numbers.emplace_back(table.of(i).begin(), table.of(i).end());
    return numbers;
  };
  EXPECT_EQ(all(sums_.source), expected.source);
  EXPECT_EQ(all(sums_.stored), expected.stored);
}

void expect_all_ways(ExampleParameter const& example, Form form, ExampleFile const& stored, Slice const& wanted) {
  SCOPED_TRACE(testing::Message() << name(example.parameter().hf_dtype) << " "
                                  << to_string(example.model.tensors.front().shape)
                                  << (form == Form::hf ? " hf " : " native ") << to_string(wanted));
  Move const move{example, form, stored, wanted, example.digests(wanted)};
  expect_digested(move);
  auto const more = larger(example, wanted);
  for (auto const& box : more == wanted ? std::vector{wanted} : std::vector{wanted, more}) {
    expect_read_to_device(move, box);
    for (bool const swapped : ways_to_lie(move)) {
      expect_read(move, box, swapped);
      expect_written(move, box, swapped);
    }
  }
}

}  // namespace rankslice::test

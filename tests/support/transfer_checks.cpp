#include "support/transfer_checks.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

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

/// What is to be read of a piece to get at a slice (idea 3 of the design: pieces under 64 KiB are read as whole rows).
std::vector<Range> expected_reads(ExampleParameter const& example, Form form, StoredPiece const& piece,
                                  Slice const& wanted) {
  auto read = wanted;
  auto const& parameter = example.parameter();
  auto const strided = form == Form::hf && parameter.stacked_experts && parameter.layout == Layout::swapped;
  if (strided && !wanted.rows.empty() && wanted.rows.size() * example.element_bytes(form) < 65536) {
    read.rows = example.whole().rows;
  }
  return bytes_of_slice(example, form, piece, read);
}

/// Call step(piece, slice) for what each piece holds of a slice, be it nothing.
template <typename Step>
void for_pieces(ExampleFile const& stored, Slice const& wanted, Step const& step) {
  for (auto const& piece : stored.pieces) step(piece, intersection_of(piece.slice, wanted));
}

void expect_reads(ExampleParameter const& example, Form form, ExampleFile const& stored, Slice const& wanted,
                  Slice const& box) {
  auto const size = example.native_of(box).size();
  Bytes out(kGuard + size + kGuard, kUntouched);
  Reported reported;
  Sums sums(example);
  MemoryReader file(stored.bytes);
  Transfer transfer(example.model, form, reported.hook());
  std::vector<Range> reads;
  for_pieces(stored, wanted, [&](StoredPiece const& piece, Slice const& slice) {
    transfer.read(piece, slice, file, {.data = out.data() + kGuard, .slice = box}, sums.sink());
    auto const more = expected_reads(example, form, piece, slice);
    reads.insert(reads.end(), more.begin(), more.end());
  });

  // The box as a file of its own, of which only what is wanted is filled.
  auto expected = Bytes(out.size(), kUntouched);
  StoredPiece const of_box{.slice = box, .extent = {.file = 0, .bytes = {kGuard, kGuard + size}}};
  auto const values = example.native_of(wanted);
  auto next = values.begin();
  for (auto const bytes : bytes_of_slice(example, Form::native, of_box, wanted)) {
    std::copy_n(next, bytes.size(), expected.begin() + std::ptrdiff_t(bytes.begin));
    next += std::ptrdiff_t(bytes.size());
  }
  EXPECT_TRUE(out == expected) << "bytes differ";
  sums.expect(wanted);
  EXPECT_EQ(reported.bytes, sum_of_sizes(reads));
  EXPECT_EQ(merged(file.reads()), merged(reads));
}

void expect_digests(ExampleParameter const& example, Form form, ExampleFile const& stored, Slice const& wanted) {
  Reported reported;
  Sums sums(example);
  MemoryReader file(stored.bytes);
  Transfer transfer(example.model, form, reported.hook());
  for_pieces(stored, wanted,
             [&](StoredPiece const& piece, Slice const& slice) { transfer.digest(piece, slice, file, sums.sink()); });
  sums.expect(wanted);
  EXPECT_EQ(reported.bytes, sum_of_sizes(file.reads()));
}

void expect_writes(ExampleParameter const& example, Form form, ExampleFile const& stored, Slice const& wanted,
                   Slice const& box) {
  TempDir dir;
  auto const path = dir.file("out");
  auto const before = random_bytes(stored.bytes.size(), 3);
  write_file(path, before);

  auto const in = example.native_of(box);
  Reported reported;
  Sums sums(example);
  auto writer = FileWriter::open(path);
  Transfer transfer(example.model, form, reported.hook());
  auto expected = before;
  std::uint64_t written = 0;
  for_pieces(stored, wanted, [&](StoredPiece const& piece, Slice const& slice) {
    transfer.write(piece, slice, {.data = in.data(), .slice = box}, writer, sums.sink());
    for (auto const bytes : bytes_of_slice(example, form, piece, slice)) {
      auto const from = stored.bytes.begin() + std::ptrdiff_t(bytes.begin);
      std::copy_n(from, bytes.size(), expected.begin() + std::ptrdiff_t(bytes.begin));
      written += bytes.size();
    }
  });
  writer.close();
  EXPECT_TRUE(file_bytes(path) == expected) << "bytes differ";
  sums.expect(wanted);
  EXPECT_EQ(reported.bytes, written);
}

}  // namespace

void Sums::expect(ExampleParameter const& values, Slice const& slice) const {
  auto const numbers = [](DigestTable const& table, std::uint32_t tensor) {
    return std::vector<std::uint64_t>(table.of(tensor).begin(), table.of(tensor).end());
  };
  for (auto const tensor : values.parameter().tensors) {
    auto const& key = values.model.tensors[tensor].key;
    EXPECT_EQ(numbers(sums_.source, tensor), values.digest(tensor, slice, Form::hf)) << key;
    if (values.parameter().dtype == values.parameter().hf_dtype) continue;
    EXPECT_EQ(numbers(sums_.stored, tensor), values.digest(tensor, slice, Form::native)) << key;
  }
}

void expect_all_ways(ExampleParameter const& example, Form form, ExampleFile const& stored, Slice const& wanted) {
  SCOPED_TRACE(testing::Message() << name(example.parameter().hf_dtype) << " "
                                  << to_string(example.model.tensors.front().shape)
                                  << (form == Form::hf ? " hf " : " native ") << to_string(wanted));
  for (auto const& box : {wanted, larger(example, wanted)}) {
    expect_reads(example, form, stored, wanted, box);
    expect_writes(example, form, stored, wanted, box);
  }
  expect_digests(example, form, stored, wanted);
}

}  // namespace rankslice::test

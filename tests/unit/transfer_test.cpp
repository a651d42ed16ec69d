#include "transform/transfer.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <stdexcept>

#include "rankslice/error.hpp"

#include "core/literals.hpp"
#include "support/faulty_reader.hpp"
#include "support/transfer_checks.hpp"

namespace rankslice {
namespace {

using test::Bytes;
using test::converted;
using test::dense;
using test::expect_all_ways;
using test::hf_file;
using test::MemoryReader;
using test::native_file;
using test::stacked_as_is;
using test::Sums;
using test::swapped;
using testing::HasSubstr;

/// All of a parameter, nothing of it, and some parts.
std::vector<Slice> parts_of(Slice const& whole) {
  auto const count = whole.part.end;
  std::vector<Range> parts{{0, count}, {0, 0}, {count, count}};
  if (count >= 3) parts.insert(parts.end(), {{0, 1}, {1, count - 1}, {count / 2, count}, {count - 1, count}});
  std::vector<Slice> slices;
  for (auto const part : parts) slices.push_back({.part = part, .rows = whole.rows});
  return slices;
}

void expect_parts_moved(test::ExampleParameter const& example) {
  auto const hf = hf_file(example);
  auto const native = native_file(example, {example.whole()});
  for (auto const& wanted : parts_of(example.whole())) {
    expect_all_ways(example, Form::hf, hf, wanted);
    expect_all_ways(example, Form::native, native, wanted);
  }
}

// A dense tensor, in elements: one less, exactly, and one more than a block of 512 KiB and two of them.
TEST(Transfer, MovesDenseTensorsOfEveryWidthAroundTheBlockSize) {
  for (auto const dtype : {DType::F8_E4M3, DType::BF16, DType::F32, DType::I64}) {
    auto const block = 512_KiB / (bits(dtype) / 8);
    for (auto const count : {block - 1, block, block + 1, 2 * block + 1}) expect_parts_moved(dense(dtype, {count}));
  }
}

TEST(Transfer, MovesDenseTensorsOfEveryRank) {
  for (auto const dtype : {DType::BOOL, DType::I16, DType::U32, DType::F64, DType::C64}) {
    for (auto const& shape :
         {Shape{}, Shape{1}, Shape{7, 9}, Shape{3, 5, 2}, Shape{2, 3, 4, 5}, Shape{0}, Shape{4, 0}}) {
      expect_parts_moved(dense(dtype, shape));
    }
  }
}

TEST(Transfer, MovesSubByteTensorsAsBytes) {
  for (auto const dtype : {DType::F4, DType::F6_E2M3, DType::F6_E3M2}) {
    for (auto const& shape : {Shape{8}, Shape{3, 4, 8}, Shape{1_MiB + 8}, Shape{0, 8}}) {
      expect_parts_moved(dense(dtype, shape));
    }
  }
}

// Rule 55: half the bytes in the file, so a block of the file becomes two in memory.
TEST(Transfer, ConvertsOnTheWayAndBackAroundTheBlockSize) {
  for (auto const& shape :
       {Shape{}, Shape{32}, Shape{256_KiB - 1}, Shape{256_KiB}, Shape{256_KiB + 1}, Shape{3, 7, 11}, Shape{0}}) {
    expect_parts_moved(converted(shape));
  }
}

// Rows of 8200 bytes: 63 of them would fill a block, so a strip is 64.
TEST(Transfer, SwapsTheAxesOfExpertsAroundTheStripSize) {
  for (auto const dtype : {DType::U8, DType::BF16, DType::F32, DType::F64}) {
    auto const columns = 8200 / (bits(dtype) / 8);
    for (std::uint64_t const rows : {63U, 64U, 65U, 130U}) expect_parts_moved(swapped(dtype, {2, rows, columns}));
  }
}

TEST(Transfer, SwapsTheAxesOfExpertsOfAnyShape) {
  for (auto const dtype : {DType::I8, DType::F16, DType::I32, DType::U64}) {
    for (auto const& shape : {Shape{1, 1, 1}, Shape{3, 5, 7}, Shape{5, 64, 3}, Shape{4, 1, 70}, Shape{3, 200, 1},
                              Shape{3, 129, 65}, Shape{2, 3, 0}, Shape{2, 0, 3}, Shape{0, 2, 3}}) {
      expect_parts_moved(swapped(dtype, shape));
    }
  }
}

TEST(Transfer, KeepsTheAxesOfExpertsThatAreStoredAsTheyAreUsed) {
  for (auto const& shape : {Shape{3, 5, 7}, Shape{3, 600, 513}}) expect_parts_moved(stacked_as_is(DType::BF16, shape));
}

// A shard's file.
TEST(Transfer, MovesToAndFromFilesThatHoldOnlyALaterPart) {
  for (auto const& example : {dense(DType::BF16, {1000}), converted({1000}), swapped(DType::BF16, {6, 33, 70}),
                              dense(DType::F4, {1000}), stacked_as_is(DType::F32, {6, 3, 5})}) {
    auto later = example.whole();
    later.part.begin = later.part.end / 2;
    auto inner = later;
    ++inner.part.begin;
    --inner.part.end;
    auto const file = native_file(example, {later});
    for (auto const& wanted : {later, inner}) expect_all_ways(example, Form::native, file, wanted);
  }
}

// What is digested is where it was read from: another place in the file gives another digest, though the caller meant
// the same.
TEST(Transfer, DigestsInTheCoordinatesOfTheOffsetsThatItReads) {
  auto const example = dense(DType::BF16, {64});
  auto const hf = hf_file(example);
  MemoryReader file(hf.bytes);
  auto piece = hf.pieces.front();
  Sums sums(example);
  Bytes out(2 * 16), same_out(2 * 16);
  Transfer transfer(example.model, Form::hf);
  transfer.read(piece, {.part = {8, 24}}, {file}, {.data = out.data(), .slice = {.part = {8, 24}}}, sums.sink());
  sums.expect(example.digests({.part = {8, 24}}));

  Sums elsewhere(example);
  piece.extent.bytes.begin -= 16;  // eight elements
  transfer.read(piece, {.part = {16, 32}}, {file}, {.data = same_out.data(), .slice = {.part = {16, 32}}},
                elsewhere.sink());
  EXPECT_EQ(out, same_out) << "the same bytes";
  auto moved = example;
  std::rotate(moved.hf[0].begin(), moved.hf[0].end() - 16, moved.hf[0].end());
  elsewhere.expect(moved.digests({.part = {16, 32}}));
}

/// Read all of a parameter from its only tensor.
void read_all(Transfer& transfer, test::ExampleParameter const& example, StoredPiece const& piece, FileReader& file,
              Bytes& out, DigestSink const& sink) {
  out.resize(example.native.size());
  transfer.read(piece, example.whole(), {file}, {.data = out.data(), .slice = example.whole()}, sink);
}

TEST(Transfer, DigestsNothingWithoutASink) {
  auto const example = swapped(DType::BF16, {2, 3, 4});
  auto const hf = hf_file(example);
  MemoryReader file(hf.bytes);
  Transfer transfer(example.model, Form::hf);
  Bytes out;
  read_all(transfer, example, hf.pieces[0], file, out, {});
  EXPECT_EQ(out, example.native);
}

TEST(Transfer, ReadsEachByteOnceInBlocksOfBoundedSize) {
  for (auto const& example : {dense(DType::BF16, {1_MiB + 77}), swapped(DType::BF16, {3, 300, 4100})}) {
    auto const hf = hf_file(example);
    MemoryReader file(hf.bytes);
    Transfer transfer(example.model, Form::hf);
    Bytes out;
    read_all(transfer, example, hf.pieces[0], file, out, {});
    auto next = hf.pieces[0].extent.bytes.begin;
    for (auto const& read : file.reads()) {
      EXPECT_EQ(read.begin, next);
      EXPECT_LE(read.size(), 64 * 8200);
      next = read.end;
    }
    EXPECT_EQ(next, hf.pieces[0].extent.bytes.end);
  }
}

TEST(Transfer, ReportsEveryBlockWhenItIsDoneAndStopsWhenTheReportThrows) {
  auto const example = dense(DType::U8, {3 * 512_KiB});
  auto const hf = hf_file(example);
  MemoryReader file(hf.bytes);
  std::uint64_t calls = 0;
  Transfer transfer(example.model, Form::hf, [&](std::uint64_t bytes) {
    EXPECT_EQ(bytes, 512_KiB);
    if (++calls == 2) throw std::runtime_error("stop");
  });
  Bytes out;
  EXPECT_THROW(read_all(transfer, example, hf.pieces[0], file, out, {}), std::runtime_error);
  EXPECT_EQ(file.reads().size(), 2U);
}

TEST(Transfer, PassesAReadersErrorOnAndReportsOnlyWhatCameBefore) {
  for (auto const& example : {dense(DType::BF16, {1_MiB}), converted({1_MiB}), swapped(DType::BF16, {2, 130, 4100})}) {
    auto const hf = hf_file(example);
    MemoryReader file(hf.bytes, "/a/damaged/file");
    file.fail_at(hf.pieces[0].extent.bytes.begin + 700'000);  // in the second block
    test::Reported reported;
    Transfer transfer(example.model, Form::hf, reported.hook());
    Bytes out;
    try {
      read_all(transfer, example, hf.pieces[0], file, out, {});
      ADD_FAILURE() << "no error";
    } catch (IoError const& error) {
      EXPECT_EQ(error.file, "/a/damaged/file");
      EXPECT_THAT(error.what(), HasSubstr("/a/damaged/file"));
    }
    EXPECT_EQ(reported.blocks, 1U);
    EXPECT_LE(reported.bytes, 700'000U);
    Sums sums(example);
    EXPECT_THROW(transfer.digest(hf.pieces[0], example.whole(), {file}, sums.sink()), IoError);
  }
}

// Rule 60: in each layout, for each way through the bytes.
TEST(Transfer, NeverTakesCodesWithoutTheirScalesForValues) {
  for (auto example :
       {dense(DType::F8_E4M3, {3, 5}), stacked_as_is(DType::F8_E4M3, {2, 3, 5}), swapped(DType::F8_E4M3, {2, 3, 5})}) {
    example.model.parameters[0].dtype = DType::BF16;
    auto const hf = hf_file(example);
    auto const& key = example.model.tensors[0].key;
    MemoryReader file(hf.bytes);
    Transfer transfer(example.model, Form::hf);
    Bytes out(2 * 2 * 3 * 5);
    auto const refused = [&](auto const& action) {
      try {
        action();
        ADD_FAILURE() << "raw codes were taken for values";
      } catch (PlanError const& error) {
        EXPECT_THAT(error.what(), testing::StartsWith(key + ": F8_E4M3"));
        EXPECT_EQ(error.tensor, key);
      }
    };
    refused([&] { transfer.read(hf.pieces[0], example.whole(), {file}, {out.data(), example.whole()}, {}); });
    refused([&] { transfer.digest(hf.pieces[0], example.whole(), {file}, {}); });
  }
}

TEST(Transfer, IsNotDisturbedByShortAndInterruptedReads) {
  auto const example = swapped(DType::BF16, {2, 33, 70});
  auto const hf = hf_file(example);
  test::FaultyReader file(std::make_unique<MemoryReader>(hf.bytes), {.most_bytes = 100, .interrupt_every = 3});
  Transfer transfer(example.model, Form::hf);
  Sums sums(example);
  Bytes out;
  read_all(transfer, example, hf.pieces[0], file, out, sums.sink());
  EXPECT_EQ(out, example.native);
  sums.expect(example.digests(example.whole()));
}

TEST(Transfer, AFileThatEndsEarlyIsAFormatError) {
  auto const example = dense(DType::BF16, {100});
  auto hf = hf_file(example);
  hf.bytes.resize(hf.pieces[0].extent.bytes.begin + 150);
  MemoryReader file(hf.bytes);
  Transfer transfer(example.model, Form::hf);
  Bytes out;
  EXPECT_THROW(read_all(transfer, example, hf.pieces[0], file, out, {}), FormatError);
}

}  // namespace
}  // namespace rankslice

// Slices with a part of each expert's rows (rule 14), which in a checkpoint with swapped axes are columns.

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "core/literals.hpp"
#include "plan/plan.hpp"
#include "support/transfer_checks.hpp"

namespace rankslice {
namespace {

using test::Bytes;
using test::ExampleParameter;
using test::expect_all_ways;
using test::hf_file;
using test::MemoryReader;
using test::native_file;
using test::stacked_as_is;
using test::swapped;

/// Whole experts, and experts of which some rows are wanted: at the beginning, in the middle, at the end, one, none.
std::vector<Slice> slices_of(Slice const& whole) {
  auto const experts = whole.part.end, rows = whole.rows.end;
  std::vector<Slice> slices{whole};
  for (auto const part : {Range{0, experts}, Range{experts / 2, experts}, Range{0, 0}}) {
    for (auto const of_each : {Range{0, rows / 2}, Range{rows / 3, rows - rows / 4}, Range{rows - 1, rows}}) {
      slices.push_back({.part = part, .rows = of_each});
    }
  }
  return slices;
}

/// The ways in which files in the native form are cut: whole, into rows, into experts and rows that do not line up.
std::vector<std::vector<Slice>> cuts_of(Slice const& whole) {
  auto const experts = whole.part.end, rows = whole.rows.end;
  auto const half = (experts + 1) / 2;
  return {{whole},
          {{whole.part, {0, rows / 2}}, {whole.part, {rows / 2, rows}}},
          {{{0, half}, {0, rows / 3}}, {{0, half}, {rows / 3, rows}}, {{half, experts}, {0, rows}}}};
}

void expect_rows_moved(ExampleParameter const& example) {
  auto const hf = hf_file(example);
  for (auto const& wanted : slices_of(example.whole())) {
    expect_all_ways(example, Form::hf, hf, wanted);
    for (auto const& cut : cuts_of(example.whole())) {
      expect_all_ways(example, Form::native, native_file(example, cut), wanted);
    }
  }
}

class TransferOfRows : public testing::TestWithParam<DType> {};

TEST_P(TransferOfRows, MovesThemBetweenAnyFormsAndCuts) {
  for (auto const& shape : {Shape{3, 70, 12}, Shape{1, 5, 9}, Shape{4, 130, 65}, Shape{2, 1, 6}, Shape{3, 6, 1}}) {
    expect_rows_moved(swapped(GetParam(), shape));
  }
}

TEST_P(TransferOfRows, MovesThemWhereTheFileHasTheSameAxes) {
  for (auto const& shape : {Shape{3, 12, 70}, Shape{1, 9, 5}, Shape{2, 6, 1}}) {
    expect_rows_moved(stacked_as_is(GetParam(), shape));
  }
}

// A strip has at least 64 rows of the file: 66 are two strips. From 64 KiB on only what is wanted of each is read.
TEST_P(TransferOfRows, ReadsWholeRowsOfTheFileForLessThan64KiBOfEachAndNoMoreThanIsWantedFromThereOn) {
  auto const per_64_KiB = 64_KiB / (bits(GetParam()) / 8);
  auto const example = swapped(GetParam(), {1, 66, per_64_KiB + 7});
  auto const hf = hf_file(example);
  for (auto const rows : {Range{3, 2 + per_64_KiB}, Range{3, 3 + per_64_KiB}, Range{7, 7 + per_64_KiB}}) {
    expect_all_ways(example, Form::hf, hf, {.part = {0, 1}, .rows = rows});
  }
}

INSTANTIATE_TEST_SUITE_P(Widths, TransferOfRows, testing::Values(DType::U8, DType::BF16, DType::F32, DType::F64),
                         [](auto const& type) { return std::string(name(type.param)); });

// A strip of short rows has many more than 64 of them.
TEST(TransferOfShortRows, FillsManyRowsIntoOneBlock) {
  auto const example = swapped(DType::BF16, {2, 9000, 40});  // 6553 rows fill a block
  for (auto const rows : {Range{0, 20}, Range{13, 40}}) {
    expect_all_ways(example, Form::hf, hf_file(example), {.part = {0, 2}, .rows = rows});
  }
  auto const file = hf_file(example);
  MemoryReader reader(file.bytes);
  Bytes out(example.native.size());
  Transfer(example.model, Form::hf)
      .read(file.pieces[0], {{0, 1}, {0, 20}}, {reader}, {.data = out.data(), .slice = example.whole()}, {});
  ASSERT_EQ(reader.reads().size(), 2U);
  for (auto const& read : reader.reads()) EXPECT_LE(read.size(), 512_KiB);
}

TEST(TransferOfManyRows, GoesBlockByBlockThroughNativeRunsOfEachExpert) {
  auto const example = stacked_as_is(DType::F32, {2, 300, 700});  // 820 KiB each
  for (auto const form : {Form::hf, Form::native}) {
    auto const file = form == Form::hf ? hf_file(example) : native_file(example, {example.whole()});
    expect_all_ways(example, form, file, {.part = {0, 2}, .rows = {3, 297}});
  }
}

TEST(TransferOfNoExperts, MovesNothing) {
  auto const example = swapped(DType::BF16, {0, 6, 4});
  for (auto const rows : {Range{0, 4}, Range{0, 2}, Range{2, 4}}) {
    expect_all_ways(example, Form::hf, hf_file(example), {.part = {0, 0}, .rows = rows});
    expect_all_ways(example, Form::native, native_file(example, {example.whole()}), {.part = {0, 0}, .rows = rows});
  }
}

// ---- all ranks of a mesh ----

struct AllRanks {
  Bytes native;
  std::uint64_t read = 0;
};

/// Load what each coordinate of a mesh holds, one after the other, into one buffer and one sum of digests.
AllRanks load_on(Mesh const& mesh, ExampleParameter const& example, Form form, test::ExampleFile const& stored,
                 DigestSink const& sink) {
  AllRanks all{.native = Bytes(example.native.size()), .read = 0};
  test::Reported reported;
  MemoryReader file(stored.bytes);
  Transfer transfer(example.model, form, reported.hook());
  std::uint64_t planned = 0;
  for (int rank = 0; rank < mesh.ranks(); ++rank) {
    auto const plan = make_load_plan(example.model, form, mesh, mesh.coordinate(rank));
    planned += plan.bytes_read;
    transfer.read(stored.pieces.front(), plan.slices.front().slice, {file},
                  {.data = all.native.data(), .slice = example.whole()}, sink);
  }
  EXPECT_EQ(reported.bytes, planned);
  all.read = reported.bytes;
  return all;
}

TEST(AllRanksOfAMesh, FillTheTensorAndTheirDigestsAddUpToItsDigest) {
  for (auto const& example :
       {swapped(DType::BF16, {5, 70, 12}), stacked_as_is(DType::F32, {3, 12, 7}), swapped(DType::U8, {1, 3, 24})}) {
    auto const expected = example.digests(example.whole());
    for (auto const ep : {1, 2, 3, 7}) {
      for (auto const ep_shard : {1, 2, 3, 4, 12}) {
        SCOPED_TRACE(testing::Message() << "ep " << ep << " × ep_shard " << ep_shard);
        Mesh const mesh{.ep_replicate = 1, .ep_shard = ep_shard, .ep = ep};
        for (auto const form : {Form::hf, Form::native}) {
          test::Sums sums(example);
          auto const file = form == Form::hf ? hf_file(example) : native_file(example, {example.whole()});
          auto const all = load_on(mesh, example, form, file, sums.sink());
          EXPECT_TRUE(all.native == example.native);
          sums.expect(expected);
          auto const strided = form == Form::hf && example.parameter().layout == Layout::swapped;
          EXPECT_EQ(all.read, example.native.size() * std::uint64_t(strided ? ep_shard : 1)) << "at most S-fold";
        }
      }
    }
  }
}

}  // namespace
}  // namespace rankslice

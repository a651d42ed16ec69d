// Experts that the checkpoint stores one by one: gate and up, or down, as matrices of their own (rules 5, 27, 28).

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "rankslice/error.hpp"

#include "native_source.hpp"
#include "plan/plan.hpp"
#include "slice_writer.hpp"
#include "support/naive_digest.hpp"
#include "support/raw_safetensors.hpp"
#include "support/temp_dir.hpp"
#include "support/transfer_checks.hpp"

namespace rankslice {
namespace {

using test::Bytes;
using test::ExampleParameter;
using test::expect_all_ways;
using test::hf_file;
using test::native_file;
using test::split;
using testing::AllOf;
using testing::HasSubstr;
using Numbers = std::vector<std::uint64_t>;

/// Gate and up of [I, H], or down of [H, I], of some experts.
std::vector<ExampleParameter> examples(DType dtype) {
  return {split(dtype, 3, 2, {5, 8}), split(dtype, 4, 1, {8, 5}), split(dtype, 1, 2, {70, 12}),
          split(dtype, 2, 2, {1, 1}), split(dtype, 2, 2, {130, 66})};
}

class SplitExperts : public testing::TestWithParam<DType> {};

TEST_P(SplitExperts, AreReadWrittenAndDigestedUnderTheirOwnKeys) {
  for (auto const& example : examples(GetParam())) {
    auto const whole = example.whole();
    auto const hf = hf_file(example);
    auto const native = native_file(example, {whole});
    for (auto const part : {whole.part, Range{whole.part.end - 1, whole.part.end}, Range{0, 0}}) {
      for (auto const rows :
           {whole.rows, Range{0, (whole.rows.end + 1) / 2}, Range{whole.rows.end / 3, whole.rows.end}}) {
        expect_all_ways(example, Form::hf, hf, {.part = part, .rows = rows});
        expect_all_ways(example, Form::native, native, {.part = part, .rows = rows});
      }
    }
  }
}

// ---- digests of runs ----

/// Call step(begin, end) for a random partition of [0, total) into runs, in random order.
template <typename Step>
void for_random_runs(std::uint64_t total, std::mt19937_64& random, Step const& step) {
  std::vector<std::uint64_t> cuts{0, total};
  for (auto count = random() % 12; count > 0; --count) cuts.push_back(random() % (total + 1));
  std::ranges::sort(cuts);
  std::vector<std::pair<std::uint64_t, std::uint64_t>> runs;
  for (std::size_t i = 1; i < cuts.size(); ++i) runs.emplace_back(cuts[i - 1], cuts[i]);
  std::ranges::shuffle(runs, random);
  for (auto const& [begin, end] : runs) step(begin, end);
}

TEST_P(SplitExperts, RunsThatCrossGateUpAndExpertsAddUpToTheDigestOfEachKey) {
  std::mt19937_64 random(7);
  for (auto const& example : examples(GetParam())) {
    auto const size = example.element_bytes(Form::native);
    auto const expected = example.digests(example.whole());
    for (int trial = 0; trial < 20; ++trial) {
      test::Sums sums(example);
      auto const& [digest, into] = sums.sink();
      for_random_runs(example.native.size() / size, random, [&](std::uint64_t begin, std::uint64_t end) {
        digest->add_native(begin, std::span(example.native).subspan(begin * size, (end - begin) * size), *into);
      });
      sums.expect(expected);
    }
  }
}

TEST_P(SplitExperts, RunsOfTheStoredMatricesAddUpToTheSame) {
  std::mt19937_64 random(8);
  for (auto const& example : examples(GetParam())) {
    auto const size = example.element_bytes(Form::hf);
    test::Sums sums(example);
    auto const& [digest, into] = sums.sink();
    for (auto const tensor : example.parameter().tensors) {
      auto const& bytes = example.hf[tensor];
      for_random_runs(bytes.size() / size, random, [&](std::uint64_t begin, std::uint64_t end) {
        digest->add_stored(tensor, begin, std::span(bytes).subspan(begin * size, (end - begin) * size), *into);
      });
    }
    sums.expect(example.digests(example.whole()));
  }
}

INSTANTIATE_TEST_SUITE_P(Widths, SplitExperts, testing::Values(DType::I8, DType::F16, DType::F32, DType::I64),
                         [](auto const& type) { return std::string(name(type.param)); });

// One run from the last gate row of one expert to the first up row of the next: each element under its own key.
TEST(SplitExpertsRun, CountsEveryElementItHasAndNoOther) {
  auto const example = split(DType::U16, 3, 2, {3, 4});  // native [3, 4, 6]
  constexpr std::uint64_t kBegin = 1 * 24 - 5, kEnd = 2 * 24 + 4;
  test::ExampleDigests expected = example.digests({.part = {0, 0}, .rows = {0, 4}});
  for (auto element = kBegin; element < kEnd; ++element) {
    auto const expert = element / 24, row = element % 24 / 6, column = element % 6;
    auto const tensor = 2 * expert + column / 3;
    auto const of_matrix = column % 3 * 4 + row;
    expected.source[tensor][0] += test::naive_digest(2, {3, 4}, example.hf[tensor], {of_matrix, of_matrix + 1}).front();
  }
  test::Sums sums(example);
  auto const& [digest, into] = sums.sink();
  digest->add_native(kBegin, std::span(example.native).subspan(2 * kBegin, 2 * (kEnd - kBegin)), *into);
  sums.expect(expected);
}

TEST(SplitExpertsRun, BeyondTheLastExpertIsRefused) {
  auto const example = split(DType::U16, 2, 2, {3, 4});
  Bytes const two_elements(4);
  test::Sums sums(example);
  auto const& [digest, into] = sums.sink();
  EXPECT_THROW(digest->add_native(47, two_elements, *into), PlanError);
  EXPECT_THROW(digest->add_native(48, two_elements, *into), PlanError);
}

// ---- streamed from one file to another ----

class SplitExpertsFile : public testing::Test {
 protected:
  std::string write(std::string const& name, Bytes const& bytes) const {
    test::write_file(dir_.file(name), bytes);
    return dir_.file(name);
  }
  Storage storage(Form form, std::string const& name, test::ExampleFile const& file, Bytes const& bytes) const {
    return {.form = form, .files = {{name, write(name, bytes), bytes.size(), 0}}, .pieces = file.pieces};
  }

  test::TempDir dir_;
  ExampleParameter const example_ = split(DType::BF16, 3, 2, {5, 8});
  test::ExampleFile const hf_ = hf_file(example_);
  test::ExampleFile const native_ = native_file(example_, {example_.whole()});
  std::vector<PlannedSlice> const all_{{0, example_.whole()}};
};

TEST_F(SplitExpertsFile, Rules40And41And45_GoesToTheNativeFormAndBack) {
  struct Way {
    Form from, to;
    bool swapped = false;
  };
  for (auto const& [from, to, swapped] :
       {Way{Form::hf, Form::native}, Way{Form::native, Form::hf}, Way{Form::native, Form::hf, true},
        Way{Form::hf, Form::hf}, Way{Form::hf, Form::hf, true}}) {
    auto const& source = from == Form::hf ? hf_ : native_;
    auto const& target = to == Form::hf ? hf_ : native_;
    auto const in = storage(from, "in", source, source.bytes);
    StreamedTensors streamed(in, example_.model, {}, swapped);
    auto const out = storage(to, "out", target, Bytes(target.bytes.size()));
    auto const written = write_slices(example_.model, all_, streamed, out, {});
    EXPECT_NO_THROW(check_read_back(example_.model, all_, out, written, {}));
    auto const found = test::file_bytes(dir_.file("out"));
    for (auto const& piece : target.pieces) {
      auto const [begin, end] = piece.extent.bytes;
      EXPECT_TRUE(std::equal(found.begin() + std::ptrdiff_t(begin), found.begin() + std::ptrdiff_t(end),
                             target.bytes.begin() + std::ptrdiff_t(begin)));
    }
    EXPECT_TRUE(std::ranges::equal(written.source.values(), streamed.read().source.values()));
  }
}

TEST_F(SplitExpertsFile, AFlippedByteThatIsReadBackIsNamedByItsOwnKey) {
  auto const in = storage(Form::native, "in", native_, native_.bytes);
  StreamedTensors streamed(in, example_.model);
  auto const out = storage(Form::hf, "out", hf_, Bytes(hf_.bytes.size()));
  auto const written = write_slices(example_.model, all_, streamed, out, {});
  for (auto const& piece : out.pieces) {
    test::flip_byte(dir_.file("out"), piece.extent.bytes.end - 1);
    try {
      check_read_back(example_.model, all_, out, written, {});
      ADD_FAILURE() << "not found";
    } catch (VerifyError const& error) {
      EXPECT_EQ(error.tensor, example_.model.tensors[piece.tensor].key);
      EXPECT_THAT(error.what(), AllOf(HasSubstr(error.tensor), HasSubstr("reads back differently")));
    }
    test::flip_byte(dir_.file("out"), piece.extent.bytes.end - 1);
  }
}

// An export that leaves out some of an expert's tensors.
TEST_F(SplitExpertsFile, OfAPartialStorageOnlyTheBytesThatItHasAreCounted) {
  Storage partial{.form = Form::hf, .files = {}, .pieces = {hf_.pieces[0], hf_.pieces[3]}, .partial = true};
  constexpr std::uint64_t kMatrix = 5 * 8 * 2;
  auto const all = stored_bytes(partial, example_.model, all_);
  EXPECT_EQ(all.wanted, 2 * kMatrix);
  EXPECT_EQ(all.read, 2 * kMatrix);
  auto const quarter = stored_bytes(partial, example_.model, {{0, {.part = {0, 1}, .rows = {4, 6}}}});
  EXPECT_EQ(quarter.wanted, kMatrix / 4);
  EXPECT_EQ(quarter.read, kMatrix) << "short rows are read whole";
}

}  // namespace
}  // namespace rankslice

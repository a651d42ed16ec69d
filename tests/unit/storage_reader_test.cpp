#include "storage_reader.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <numeric>

#include "rankslice/error.hpp"

#include "parallel_reading.hpp"
#include "slice_writer.hpp"
#include "support/naive_digest.hpp"
#include "support/raw_checkpoint.hpp"
#include "support/raw_safetensors.hpp"
#include "support/temp_dir.hpp"
#include "watch.hpp"

namespace rankslice {
namespace {

using test::Bytes;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
namespace fs = std::filesystem;
using namespace std::chrono_literals;

/// A dense tensor of 10 elements and 6 experts of [4, 3], both U16.
Model two_tensors() {
  return {.tensors = {{.key = "dense", .dtype = DType::U16, .shape = {10}, .parameter = 0},
                      {.key = "experts",
                       .dtype = DType::U16,
                       .shape = {6, 4, 3},
                       .parameter = 1,
                       .experts = {0, 6},
                       .columns = {0, 4}}},
          .parameters = {{.fqn = "d", .hf_dtype = DType::U16, .dtype = DType::U16, .shape = {10}, .tensors = {0}},
                         {.fqn = "e",
                          .hf_dtype = DType::U16,
                          .dtype = DType::U16,
                          .shape = {6, 3, 4},
                          .layout = Layout::swapped,
                          .stacked_experts = true,
                          .tensors = {1}}}};
}

constexpr std::uint64_t kExpert = 24;  // bytes of one
constexpr std::uint32_t kDense = 0, kStacked = 1;

/// These experts whole, or these elements.
Slice slice_of(std::uint32_t parameter, Range part) {
  return {.part = part, .rows = parameter == kDense ? Range{0, 1} : Range{0, 3}};
}

StoredPiece piece(std::uint32_t parameter, Range part, std::uint32_t file, std::uint64_t begin) {
  auto const unit = parameter == kDense ? 2 : kExpert;
  return {.parameter = parameter,
          .tensor = parameter,
          .slice = slice_of(parameter, part),
          .extent = {file, {begin, begin + part.size() * unit}}};
}

PlannedSlice planned(std::uint32_t parameter, Range part) { return {parameter, slice_of(parameter, part)}; }

std::int64_t modified_ns(std::string const& path) {
  struct stat status {};
  EXPECT_EQ(::stat(path.c_str(), &status), 0);
  return status.st_mtim.tv_sec * 1'000'000'000 + status.st_mtim.tv_nsec;
}

/// An hour ago: then a change now cannot fall into the same tick of the file system's clock.
void make_old(std::string const& path) { fs::last_write_time(path, fs::file_time_type::clock::now() - 1h); }

class StorageFiles : public testing::Test {
 protected:
  /// A file with random bytes.
  std::string write(std::string const& name, std::uint64_t size) const {
    auto const path = dir_.file(name);
    test::write_file(path, test::random_bytes(size, size));
    make_old(path);
    return path;
  }
  static CatalogFile known(std::string const& path) {
    return {.name = fs::path(path).filename().string(),
            .path = path,
            .size = fs::file_size(path),
            .modified_ns = modified_ns(path)};
  }

  test::TempDir dir_;
  Model const model_ = two_tensors();
};

struct Step {
  Slice slice;
  std::string path;
  std::uint64_t begin;  // of the piece that holds it
  bool operator==(Step const&) const = default;
};

std::vector<Step> steps(StorageReader& reader, PlannedSlice const& wanted) {
  std::vector<Step> steps;
  reader.for_each_piece(wanted, [&](StoredPiece const& piece, Slice const& slice, PieceFiles const& files) {
    steps.push_back({slice, files.data.path(), piece.extent.bytes.begin});
  });
  return steps;
}

// ---- where things are ----

TEST_F(StorageFiles, EveryPieceThatHoldsSomethingOfASliceComesWithItsFile) {
  auto const a = write("a", 200), b = write("b", 200), c = write("c", 200);
  Storage const storage{.form = Form::native,
                        .files = {known(a), known(b), known(c)},
                        .pieces = {piece(kDense, {0, 10}, 1, 180), piece(kStacked, {0, 2}, 0, 7),
                                   piece(kStacked, {2, 5}, 2, 0), piece(kStacked, {5, 6}, 1, 100)}};
  StorageReader reader(storage, model_);
  auto const experts = [](std::uint64_t begin, std::uint64_t end) { return slice_of(kStacked, {begin, end}); };
  EXPECT_THAT(steps(reader, planned(kStacked, {1, 6})),
              ElementsAre(Step{experts(1, 2), a, 7}, Step{experts(2, 5), c, 0}, Step{experts(5, 6), b, 100}));
  EXPECT_THAT(steps(reader, planned(kDense, {3, 4})), ElementsAre(Step{slice_of(kDense, {3, 4}), b, 180}));
  EXPECT_THAT(steps(reader, planned(kStacked, {6, 6})), testing::IsEmpty());
  EXPECT_NO_THROW(reader.check_unchanged());
}

TEST_F(StorageFiles, APieceGivesOnlyTheRowsThatAreWantedOfIt) {
  auto const a = write("a", 200), b = write("b", 200);
  Storage storage{.form = Form::native, .files = {known(a), known(b)}, .pieces = {}};
  storage.pieces.push_back({.parameter = kStacked, .slice = {{0, 6}, {0, 1}}, .extent = {0, {10, 58}}});
  storage.pieces.push_back({.parameter = kStacked, .slice = {{0, 6}, {1, 3}}, .extent = {1, {20, 116}}});
  StorageReader reader(storage, model_);
  EXPECT_THAT(steps(reader, {kStacked, {{2, 4}, {0, 2}}}),
              ElementsAre(Step{{{2, 4}, {0, 1}}, a, 10}, Step{{{2, 4}, {1, 2}}, b, 20}));
  EXPECT_THAT(steps(reader, {kStacked, {{5, 6}, {2, 3}}}), ElementsAre(Step{{{5, 6}, {2, 3}}, b, 20}));
}

TEST_F(StorageFiles, APartThatNoPieceHoldsIsAnError) {
  auto const a = write("a", 200);
  Storage const storage{
      .form = Form::hf, .files = {known(a)}, .pieces = {piece(kStacked, {0, 2}, 0, 0), piece(kStacked, {3, 6}, 0, 72)}};
  StorageReader reader(storage, model_);
  for (auto const part : {Range{1, 4}, Range{2, 3}}) {
    EXPECT_THROW(steps(reader, planned(kStacked, part)), PlanError);
  }
  EXPECT_THROW(steps(reader, planned(kDense, {0, 1})), PlanError);
}

// ---- files that change ----

class ChangingFile : public StorageFiles {
 protected:
  /// What opening the file for its first piece ends with.
  std::string outcome_of_reading(CatalogFile const& as_known) {
    Storage const storage{.form = Form::hf, .files = {as_known}, .pieces = {piece(kDense, {0, 10}, 0, 0)}};
    StorageReader reader(storage, model_);
    return outcome([&] { steps(reader, planned(kDense, {0, 10})); });
  }
  /// What the check after reading ends with, when `change` comes between.
  std::string outcome_of_check_after(std::function<void()> const& change) {
    Storage const storage{.form = Form::hf, .files = {known(path_)}, .pieces = {piece(kDense, {0, 10}, 0, 0)}};
    StorageReader reader(storage, model_);
    steps(reader, planned(kDense, {0, 10}));
    change();
    return outcome([&] { reader.check_unchanged(); });
  }
  std::string outcome(std::function<void()> const& step) const {
    try {
      step();
    } catch (Error const& error) {
      EXPECT_EQ(error.file, path_);
      return std::to_string(static_cast<int>(error.code)) + " " + error.what();
    }
    return "read";
  }

  std::string const path_ = write("a", 100);
};

TEST_F(ChangingFile, AsItsHeaderSaidIsRead) { EXPECT_EQ(outcome_of_reading(known(path_)), "read"); }

TEST_F(ChangingFile, OfAnotherSizeSinceItsHeaderWasReadIsBadData) {
  auto const before = known(path_);
  fs::resize_file(path_, 60);
  EXPECT_EQ(outcome_of_reading(before), "65 " + path_ + ": expected 100 bytes, as when its header was read, found 60");
}

TEST_F(ChangingFile, WrittenSinceItsHeaderWasReadIsAnIoError) {
  auto const before = known(path_);
  test::flip_byte(path_, 50);
  EXPECT_EQ(outcome_of_reading(before), "74 " + path_ + ": changed since its header was read");
}

TEST_F(ChangingFile, WhoseTimeIsNotKnownIsReadWhateverItsTime) {
  auto before = known(path_);
  before.modified_ns = 0;
  test::flip_byte(path_, 50);
  EXPECT_EQ(outcome_of_reading(before), "read");
}

TEST_F(ChangingFile, GoneSinceItsHeaderWasReadIsMissing) {
  auto const before = known(path_);
  fs::remove(path_);
  EXPECT_THAT(outcome_of_reading(before), testing::StartsWith("66 " + path_));
}

TEST_F(ChangingFile, WrittenWhileItIsReadIsAnIoError) {
  EXPECT_EQ(outcome_of_check_after([&] { test::flip_byte(path_, 99); }), "74 " + path_ + ": changed while it was read");
}

TEST_F(ChangingFile, ThatGrowsWhileItIsReadIsAnIoError) {
  EXPECT_THAT(outcome_of_check_after([&] { fs::resize_file(path_, 101); }), testing::StartsWith("74 "));
}

// Even when whoever wrote it set its time back.
TEST_F(ChangingFile, WrittenInSecretWhileItIsReadIsAnIoError) {
  auto const time = fs::last_write_time(path_);
  EXPECT_THAT(outcome_of_check_after([&] {
                test::flip_byte(path_, 99);
                fs::last_write_time(path_, time);
              }),
              testing::StartsWith("74 "));
}

// Whoever replaces a file by renaming leaves the open one as it was: what is read is whole, and old. Its link count,
// and so its change time, tells.
TEST_F(ChangingFile, ReplacedWhileItIsReadIsAnIoError) {
  auto const other = write("b", 100);
  EXPECT_EQ(outcome_of_check_after([&] { fs::rename(other, path_); }), "74 " + path_ + ": changed while it was read");
}

TEST_F(ChangingFile, CutWhileItIsReadIsBadData) {
  Storage const storage{.form = Form::hf, .files = {known(path_)}, .pieces = {piece(kDense, {0, 10}, 0, 0)}};
  StorageReader reader(storage, model_);
  Bytes out(20);
  auto const read = [&](StoredPiece const& piece, Slice const& slice, PieceFiles const& files) {
    fs::resize_file(path_, 10);
    Transfer(model_, Form::hf).read(piece, slice, files, {.data = out.data(), .slice = slice}, {});
  };
  EXPECT_THAT(outcome([&] { reader.for_each_piece(planned(kDense, {0, 10}), read); }), testing::StartsWith("65 "));
}

// ---- writing and reading back ----

/// Native values of both parameters.
class Values final : public NativeSource {
 public:
  void for_each_box(PlannedSlice const& wanted, BoxStep const& use) override {
    auto const unit = wanted.parameter == kDense ? 2 : kExpert;
    auto const& bytes = wanted.parameter == kDense ? dense : experts;
    for (auto i = wanted.slice.part.begin; i < wanted.slice.part.end; ++i) {
      auto const one = slice_of(wanted.parameter, {i, i + 1});
      use(one, {.data = bytes.data() + i * unit, .slice = one});
    }
  }
  Bytes const dense = test::random_bytes(20, 1);
  Bytes const experts = test::random_bytes(6 * kExpert, 2);  // [6, 3, 4]
};

class WrittenSlices : public StorageFiles {
 protected:
  WrittenSlices() {
    target_ = {.form = Form::hf,
               .files = {{"one", write("one", 101), 101, 0}, {"two", write("two", 200), 200, 0}},
               .pieces = {piece(kDense, {0, 10}, 0, 51), piece(kStacked, {0, 6}, 1, 33)}};
  }
  Digests write_all() {
    return write_slices(model_, plan_, values_, target_, [this](std::uint64_t bytes) { done_ += bytes; });
  }

  std::vector<PlannedSlice> const plan_{planned(kDense, {2, 9}), planned(kStacked, {1, 5})};
  Storage target_;
  Values values_;
  std::uint64_t done_ = 0;
};

TEST_F(WrittenSlices, AreInTheFormOfTheTargetAtTheirPlacesAndNothingElseIsTouched) {
  auto one = test::file_bytes(dir_.file("one"));
  auto two = test::file_bytes(dir_.file("two"));
  (void)write_all();
  std::copy(values_.dense.begin() + 4, values_.dense.begin() + 18, one.begin() + 51 + 4);
  auto const hf = test::swap_axes(values_.experts, {6, 3, 4}, 2);
  std::copy(hf.begin() + kExpert, hf.begin() + 5 * kExpert, two.begin() + 33 + kExpert);
  EXPECT_EQ(test::file_bytes(dir_.file("one")), one);
  EXPECT_EQ(test::file_bytes(dir_.file("two")), two);
  EXPECT_EQ(done_, 7U * 2 + 4 * kExpert);
}

TEST_F(WrittenSlices, DigestAsTheDefinitionSaysWhenWrittenAndWhenReadBack) {
  auto const written = write_all();
  auto const read = digest_slices(model_, plan_, target_, {});
  auto const hf = test::swap_axes(values_.experts, {6, 3, 4}, 2);
  auto const dense = test::naive_digest(2, {10}, values_.dense, {2, 9});
  auto const experts = test::naive_digest(2, {6, 4, 3}, hf, {12, 60});
  for (auto const* const digests : {&written, &read}) {
    EXPECT_TRUE(std::ranges::equal(digests->source.of(kDense), dense));
    EXPECT_TRUE(std::ranges::equal(digests->source.of(kStacked), experts));
  }
  for (auto const threads : {1, 2, 3}) {
    EXPECT_NO_THROW(check_read_back(model_, plan_, target_, written, {.threads = threads})) << threads;
  }
}

TEST_F(WrittenSlices, OneFlippedByteIsFoundAndNamedByTensorAndFile) {
  auto const written = write_all();
  struct Place {
    std::string file;
    std::uint64_t offset;
    std::string tensor;
  };
  for (auto const& [file, offset, tensor] :
       {Place{"one", 51 + 4, "dense"}, Place{"one", 51 + 17, "dense"}, Place{"two", 33 + kExpert, "experts"},
        Place{"two", 33 + 5 * kExpert - 1, "experts"}}) {
    test::flip_byte(dir_.file(file), offset);
    for (auto const threads : {1, 2, 3}) {
      try {
        check_read_back(model_, plan_, target_, written, {.threads = threads});
        ADD_FAILURE() << file << " " << offset << " " << threads;
      } catch (VerifyError const& error) {
        EXPECT_EQ(error.file, file);
        EXPECT_EQ(error.tensor, tensor);
        EXPECT_THAT(error.what(), AllOf(HasSubstr(file + ": " + tensor), HasSubstr("reads back differently")));
      }
    }
    test::flip_byte(dir_.file(file), offset);
  }
  EXPECT_NO_THROW(check_read_back(model_, plan_, target_, written, {}));
}

TEST_F(WrittenSlices, WhatOthersWriteBesideThemDoesNotMatter) {
  auto const written = write_all();
  test::flip_byte(dir_.file("one"), 51 + 3);
  test::flip_byte(dir_.file("two"), 33 + 5 * kExpert);
  EXPECT_NO_THROW(check_read_back(model_, plan_, target_, written, {}));
}

TEST_F(WrittenSlices, ATargetThatIsNotThereIsAnError) {
  fs::remove(dir_.file("two"));
  EXPECT_THROW((void)write_all(), IoError);
}

TEST_F(WrittenSlices, PlansAreCountedInTheBytesOfAForm) {
  auto model = model_;
  model.parameters[kDense].dtype = DType::F64;
  EXPECT_EQ(plan_bytes(model, plan_, Form::hf), 7U * 2 + 4 * kExpert);
  EXPECT_EQ(plan_bytes(model, plan_, Form::native), 7U * 8 + 4 * kExpert);
}

// ---- after every block ----

TEST(Watch, CountsBlocksAndStopsOnRequest) {
  std::vector<std::uint64_t> seen;
  std::stop_source stop;
  CallOptions const call{.progress =
                             [&](Progress const& progress) {
                               EXPECT_EQ(progress.phase, "load");
                               EXPECT_EQ(progress.total, 100U);
                               seen.push_back(progress.done);
                             },
                         .stop = stop.get_token()};
  auto const done = watch(call, "load", 100, nullptr);
  done(30);
  done(50);
  stop.request_stop();
  EXPECT_THROW(done(20), Interrupted);
  EXPECT_THAT(seen, ElementsAre(30, 80));
}

}  // namespace
}  // namespace rankslice

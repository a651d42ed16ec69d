// Exports that are interrupted: a later run of the same key, on other ranks, writes only the rest, and the files are
// those of a run that nobody interrupted.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>

#include "rankslice/load.hpp"
#include "rankslice/manifest.hpp"
#include "rankslice/to_hf.hpp"
#include "rankslice/verify.hpp"

#include "recorded_export.hpp"
#include "support/raw_checkpoint.hpp"
#include "support/temp_dir.hpp"
#include "support/thread_world.hpp"
#include "synth/synth.hpp"

namespace rankslice::test {
namespace {

namespace fs = std::filesystem;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

/// Every file below a folder: name -> bytes.
std::map<std::string, Bytes> files_in(std::string const& folder) {
  std::map<std::string, Bytes> files;
  for (auto const& entry : fs::directory_iterator(folder)) {
    files[entry.path().filename().string()] = file_bytes(entry.path().string());
  }
  return files;
}

/// What all ranks of a run did and said.
struct Seen {
  std::exception_ptr error;  // of rank 0
  std::uint64_t written = 0, read = 0, files = 0;
  std::uint64_t blocks = 0;  // of rank 0's progress
  std::optional<Resumed> resumed;
  std::optional<Reread> reread;
  std::vector<std::string> notices, warnings;

  [[nodiscard]] ExitCode code() const {
    try {
      if (error) std::rethrow_exception(error);
      return ExitCode::done;
    } catch (Error const& thrown) {
      return thrown.code;
    }
  }
  [[nodiscard]] std::string message() const {
    try {
      if (error) std::rethrow_exception(error);
      return "no error";
    } catch (Error const& thrown) {
      return thrown.what();
    }
  }
};

/// Called on rank 0 after each of its blocks, with how many they are by now.
using AfterBlock = std::function<void(std::uint64_t blocks)>;

AfterBlock interrupt_after(std::uint64_t blocks) {
  return [blocks](std::uint64_t done) {
    if (done == blocks) throw Interrupted(ExitCode::terminated);
  };
}

constexpr Recording kEachFile{.stage_bytes = 1};

/// A way to export.
struct Way {
  std::string name;
  std::string source;
  bool of_state = false;
  ExportOptions options{};
};

class ResumedExports : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = std::make_unique<TempDir>();
    synthesize(path("bf16"), {.layers = 2, .experts = 5});
    synthesize(path("split"), {.layers = 2, .experts = 3, .decoder_experts = ExpertForm::split});
    synthesize(path("fp8"), {.layers = 1, .experts = 3, .quantization = SynthQuantization::fp8});
  }
  static void TearDownTestSuite() { folder_.reset(); }
  void SetUp() override {
    for (auto const& entry : fs::directory_iterator(folder_->path())) {
      if (entry.path().filename().string().starts_with("out")) fs::remove_all(entry.path());
    }
  }

  static std::string path(std::string const& name) { return folder_->file(name); }
  static std::vector<Way> ways() {
    return {
        {.name = "a checkpoint", .source = "bf16"},
        {.name = "split experts, gathered", .source = "split", .options = {.gather = true}},
        {.name = "dequantised", .source = "fp8", .options = {.max_file_bytes = 2'000'000}},
        {.name = "dequantised and gathered", .source = "fp8", .options = {.max_file_bytes = 2'000'000, .gather = true}},
        {.name = "as the source has it", .source = "fp8", .options = {.layout = ExportLayout::source}},
        {.name = "as the source has it, by one",
         .source = "fp8",
         .options = {.layout = ExportLayout::source, .gather = true}},
        {.name = "a state", .source = "split", .of_state = true},
        {.name = "a state, gathered", .source = "bf16", .of_state = true, .options = {.gather = true}},
        {.name = "a state and copies", .source = "fp8", .of_state = true, .options = {.layout = ExportLayout::source}}};
  }

  static Seen run(Way const& way, int ranks, AfterBlock const& after_block = {}, VerifyLevel verify = VerifyLevel::full,
                  Recording const& recording = kEachFile) {
    Seen seen;
    std::mutex mutex;
    auto const on_rank = [&](Communicator& world) {
      auto options = way.options;
      options.call.threads = 1;  // so that every block is told by itself
      if (world.rank() == 0) {
        options.call.notice = [&](Notice const& notice) {
          (notice.warning ? seen.warnings : seen.notices).push_back(notice.text);
        };
        options.call.progress = [&](Progress const& progress) {
          if (progress.phase != "to_hf") return;
          ++seen.blocks;
          if (after_block) after_block(seen.blocks);
        };
      }
      auto const source = open_checkpoint(path(way.source), world);
      auto const mesh = make_mesh(world.size());
      auto const report = way.of_state ? export_state(load(source, mesh, mesh.coordinate(world.rank())), path("out"),
                                                      world, options, recording)
                                       : export_checkpoint(*source, path("out"), world, options, verify, recording);
      std::lock_guard const lock(mutex);
      seen.written += report.bytes_written;
      seen.read += report.bytes_read;
      seen.files = report.files;
      seen.resumed = report.resumed;
      seen.reread = report.reread;
    };
    seen.error = exceptions_of_ranks(ranks, on_rank).front();
    return seen;
  }
  static Seen resume(Way way, int ranks, AfterBlock const& after_block = {}, VerifyLevel verify = VerifyLevel::full) {
    way.options.resume = true;
    return run(way, ranks, after_block, verify);
  }

  /// What stands beside the sources.
  static std::vector<std::string> outputs() {
    std::vector<std::string> names;
    for (auto const& entry : fs::directory_iterator(folder_->path())) {
      auto const name = entry.path().filename().string();
      if (name.starts_with("out")) names.push_back(name);
    }
    std::ranges::sort(names);
    return names;
  }
  /// The only folder of an unfinished output.
  static std::string partial() {
    for (auto const& name : outputs()) {
      if (name.find(".partial-") != std::string::npos && fs::is_directory(path(name))) return path(name);
    }
    return {};
  }

 private:
  static inline std::unique_ptr<TempDir> folder_;
};

TEST_F(ResumedExports, EndInTheFilesOfAWholeRunWhereverTheyWereInterruptedAndOnHoweverManyRanks) {
  for (auto const& way : ways()) {
    SCOPED_TRACE(way.name);
    fs::remove_all(path("out"));
    auto const whole = run(way, 2);
    ASSERT_EQ(whole.code(), ExitCode::done);
    auto const expected = files_in(path("out"));
    std::array<std::uint64_t, 3> blocks{};  // they depend on the number of ranks
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      fs::remove_all(path("out"));
      blocks[i] = resume(way, static_cast<int>(i) + 1).blocks;
    }
    constexpr std::uint64_t places = 4;
    std::uint64_t most_segments = 0;
    for (std::uint64_t place = 0; place <= places; ++place) {
      fs::remove_all(path("out"));
      auto const ranks = 1 + place % 3;
      auto const at = std::max<std::uint64_t>(1, blocks[ranks - 1] * place / places);
      ASSERT_EQ(resume(way, static_cast<int>(ranks), interrupt_after(at)).code(), ExitCode::terminated) << place;
      ASSERT_FALSE(fs::exists(path("out")));
      auto const rest = resume(way, static_cast<int>(1 + (place + 1) % 3));
      ASSERT_EQ(rest.code(), ExitCode::done) << place;
      EXPECT_TRUE(files_in(path("out")) == expected) << place;
      EXPECT_THAT(outputs(), ElementsAre("out")) << place;
      auto const taken_over = rest.resumed.value_or(Resumed{});
      constexpr auto scales = 1000.0;  // of dense weights, which count on each rank that copies a part of the weight
      EXPECT_NEAR(static_cast<double>(rest.written + taken_over.bytes), static_cast<double>(whole.written), scales);
      EXPECT_GE(taken_over.segments, most_segments) << place;
      most_segments = std::max(most_segments, taken_over.segments);
    }
    ASSERT_GT(whole.files, 1U);
    EXPECT_EQ(most_segments, whole.files - 1) << "all but the file that was being read back";
  }
}

/// As a run leaves it that is stopped when all is written and read back.
class AllWritten : public ResumedExports {
 protected:
  void SetUp() override {
    ResumedExports::SetUp();
    auto const whole = run(way_, 1);
    ASSERT_EQ(whole.code(), ExitCode::done);
    files_ = whole.files;
    expected_ = files_in(path("out"));
    fs::remove_all(path("out"));
    // The last file is not recorded when its last block is read back.
    ASSERT_EQ(resume(way_, 1, interrupt_after(whole.blocks)).code(), ExitCode::terminated);
    ASSERT_FALSE(partial().empty());
  }
  /// What a run says that finds `damaged` parts of the output.
  static void expect_written_again(std::uint64_t damaged) {
    auto const rest = resume(way_, 2);
    ASSERT_EQ(rest.code(), ExitCode::done);
    EXPECT_EQ(rest.resumed.value().segments, files_ - 1 - damaged);
    EXPECT_TRUE(files_in(path("out")) == expected_);
    EXPECT_THAT(outputs(), ElementsAre("out"));
  }
  static std::string first_file() { return partial() + "/" + expected_.upper_bound("model-")->first; }

  static inline Way const way_{.name = "a checkpoint", .source = "bf16"};
  static inline std::uint64_t files_ = 0;
  static inline std::map<std::string, Bytes> expected_;
};

TEST_F(AllWritten, TheRunThatGoesOnSaysSo) {
  auto const place = partial();
  auto const rest = resume(way_, 2);
  EXPECT_THAT(rest.warnings, IsEmpty());
  EXPECT_THAT(rest.notices,
              ElementsAre(HasSubstr(fmt::format("going on in {}: {} of {} parts", place, files_ - 1, files_))));
  EXPECT_EQ(rest.resumed.value().of, files_);
}

TEST_F(AllWritten, APartWithAChangedBitIsWrittenAgain) {
  flip_byte(first_file(), fs::file_size(first_file()) - 1);
  auto const name = fs::path(first_file()).filename().string();
  auto const rest = resume(way_, 2);
  ASSERT_EQ(rest.code(), ExitCode::done);
  EXPECT_THAT(rest.warnings,
              ElementsAre(HasSubstr("not what an earlier run wrote there, so it is written again: " + name)));
  EXPECT_EQ(rest.resumed.value().segments, files_ - 2);
  EXPECT_TRUE(files_in(path("out")) == expected_);
}

TEST_F(AllWritten, AFileWhoseBlocksThePowerCutLeftAsZerosIsWrittenAgain) {
  auto const size = fs::file_size(first_file());
  std::uint64_t header = 0;
  std::memcpy(&header, file_bytes(first_file()).data(), sizeof header);
  fs::resize_file(first_file(), sizeof header + header);
  fs::resize_file(first_file(), size);
  expect_written_again(1);
}

TEST_F(AllWritten, AFileWithAnotherHeaderIsMadeAnew) {
  flip_byte(first_file(), 12);
  expect_written_again(1);
}

TEST_F(AllWritten, AFileOfAnotherSizeIsMadeAnew) {
  fs::resize_file(first_file(), fs::file_size(first_file()) - 1);
  expect_written_again(1);
}

TEST_F(AllWritten, AFileThatIsGoneIsMadeAnew) {
  fs::remove(first_file());
  expect_written_again(1);
}

TEST_F(AllWritten, WhatElseIsThereIsRemoved) {
  for (auto const* const name : {"config.json", "model.safetensors.index.json", "foreign.txt"}) {
    std::ofstream(partial() + "/" + name) << "half of";
  }
  expect_written_again(0);
}

TEST_F(AllWritten, ARunOfOtherValuesLeavesItAlone) {
  auto const left = outputs();
  auto const file = path("bf16") + "/" + expected_.upper_bound("model-")->first;
  auto const time = fs::last_write_time(file);
  fs::last_write_time(file, time + std::chrono::seconds(1));
  auto const other = resume(way_, 1);
  fs::last_write_time(file, time);
  ASSERT_EQ(other.code(), ExitCode::done);
  EXPECT_FALSE(other.resumed);
  EXPECT_TRUE(files_in(path("out")) == expected_);
  EXPECT_THAT(other.warnings, Contains(HasSubstr(partial())));
  for (auto const& name : left) EXPECT_THAT(outputs(), Contains(name));
}

TEST_F(AllWritten, ARunOfOtherOptionsLeavesItAlone) {
  auto other = way_;
  other.options.keys = [](std::string_view key) { return key.find("layers.0") != std::string_view::npos; };
  auto const selected = resume(other, 1);
  ASSERT_EQ(selected.code(), ExitCode::done);
  EXPECT_FALSE(selected.resumed);
  EXPECT_FALSE(partial().empty());
}

TEST_F(AllWritten, ARunThatDoesNotResumeLeavesItAlone) {
  auto const other = run(way_, 1);
  ASSERT_EQ(other.code(), ExitCode::done);
  EXPECT_FALSE(other.resumed);
  EXPECT_FALSE(partial().empty());
}

TEST_F(AllWritten, RereadingCoversWhatIsTakenOver) {
  auto const whole = run(way_, 2, {}, VerifyLevel::reread);
  fs::remove_all(path("out"));
  auto const rest = resume(way_, 2, {}, VerifyLevel::reread);
  ASSERT_EQ(rest.code(), ExitCode::done);
  EXPECT_LT(rest.read, whole.read);
  EXPECT_EQ(rest.reread.value().bytes, whole.reread.value().bytes);
  EXPECT_TRUE(whole.reread.value().another_rank);
  EXPECT_FALSE(rest.reread.value().another_rank) << "who read it before is not known";
  EXPECT_TRUE(files_in(path("out")) == expected_);
}

TEST_F(AllWritten, ASourceThatReadsDifferentlyNowIsFoundByRereading) {
  auto const file = path("bf16") + "/" + expected_.upper_bound("model-")->first;
  auto const time = fs::last_write_time(file);
  auto const last = fs::file_size(file) - 1;
  flip_byte(file, last);
  fs::last_write_time(file, time);  // what lies at the disk itself does not tell
  auto const rest = resume(way_, 2, {}, VerifyLevel::reread);
  flip_byte(file, last);
  fs::last_write_time(file, time);
  EXPECT_EQ(rest.code(), ExitCode::difference);
  EXPECT_THAT(rest.message(), HasSubstr("read again"));
  EXPECT_THAT(outputs(), IsEmpty());
}

TEST_F(ResumedExports, LeaveNothingOfARunThatFailsOrDoesNotResume) {
  Way const way{.name = "a checkpoint", .source = "bf16"};
  auto const blocks = resume(way, 1).blocks;
  fs::remove_all(path("out"));
  EXPECT_EQ(run(way, 1, interrupt_after(blocks)).code(), ExitCode::terminated);
  EXPECT_THAT(outputs(), IsEmpty());
  auto const fail = [&](std::uint64_t done) {
    if (done == blocks) throw VerifyError("something is wrong with the last file");
  };
  EXPECT_EQ(resume(way, 1, fail).code(), ExitCode::difference);
  EXPECT_THAT(outputs(), IsEmpty());
}

TEST_F(ResumedExports, LoseNoMoreThanAHundredthOrOneFileOfASmallOutput) {
  Way way{.name = "a checkpoint", .source = "bf16", .options = {.resume = true}};
  auto const whole = run(way, 2, {}, VerifyLevel::full, {});
  fs::remove_all(path("out"));
  ASSERT_EQ(run(way, 2, interrupt_after(whole.blocks), VerifyLevel::full, {}).code(), ExitCode::terminated);
  EXPECT_EQ(resume(way, 2).resumed.value().segments, whole.files - 1) << "all but the file that was being read back";
}

TEST_F(ResumedExports, FindWhatIsWrittenWrongAtItsStage) {
  Way const way{.name = "a checkpoint", .source = "bf16"};
  auto const blocks = resume(way, 1).blocks;
  fs::remove_all(path("out"));
  auto const damage_first_block = [&](std::uint64_t done) {
    if (done != 1) return;
    auto const file = partial() + "/model-00001-of-00003.safetensors";
    std::uint64_t header = 0;
    std::memcpy(&header, file_bytes(file).data(), sizeof header);
    flip_byte(file, sizeof header + header);
  };
  auto const stopped = resume(way, 1, damage_first_block);
  EXPECT_EQ(stopped.code(), ExitCode::difference);
  EXPECT_THAT(stopped.message(), HasSubstr("model-00001-of-00003.safetensors"));
  EXPECT_LT(stopped.blocks, blocks * 2 / 3) << "before the other files";
}

TEST_F(ResumedExports, AreProvedByTheDigestsOfAManifestWithWhatWasTakenOver) {
  Way const way{.name = "with digests", .source = "manifest"};
  synthesize(path("manifest"), {.layers = 1, .experts = 3});
  auto const world = make_solo_communicator();
  auto const checkpoint = open_checkpoint(path("manifest"));
  write_manifest(*checkpoint, digest(*checkpoint, *world), path("manifest/rankslice.manifest.json"), *world);
  auto const whole = run(way, 1);
  fs::remove_all(path("out"));
  ASSERT_EQ(resume(way, 1, interrupt_after(whole.blocks)).code(), ExitCode::terminated);
  auto const rest = resume(way, 2);
  EXPECT_EQ(rest.code(), ExitCode::done) << rest.message();
  EXPECT_EQ(rest.resumed.value().segments, whole.files - 1);
}

}  // namespace
}  // namespace rankslice::test

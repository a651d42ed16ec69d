// Stores whose writing is interrupted: a later run for the same values, on other ranks, writes only the rest, and the
// file is that of a run that nobody interrupted.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <filesystem>
#include <mutex>

#include "rankslice/load.hpp"
#include "rankslice/store.hpp"
#include "rankslice/to_hf.hpp"

#include "core/literals.hpp"
#include "recorded_export.hpp"
#include "recorded_store.hpp"
#include "support/raw_checkpoint.hpp"
#include "support/temp_dir.hpp"
#include "support/thread_world.hpp"
#include "synth/synth.hpp"

namespace rankslice::test {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

/// What all ranks of a run did and said.
struct Seen {
  ExitCode code = ExitCode::done;  // of rank 0
  std::uint64_t written = 0;
  std::uint64_t blocks = 0;  // of rank 0's progress
  std::optional<Resumed> resumed;
  std::vector<std::string> notices, warnings;
};

using AfterBlock = std::function<void(std::uint64_t blocks)>;

AfterBlock interrupt_after(std::uint64_t blocks) {
  return [blocks](std::uint64_t done) {
    if (done == blocks) throw Interrupted(ExitCode::terminated);
  };
}

constexpr Recording kEachMebibyte{.stage_bytes = 1, .store_bytes = 1_MiB};

class ResumedStores : public testing::TestWithParam<std::string> {
 protected:
  static void SetUpTestSuite() {
    folder_ = std::make_unique<TempDir>();
    synthesize(path("bf16"), {.layers = 2, .experts = 5});
    synthesize(path("fp8"), {.layers = 1, .experts = 3, .quantization = SynthQuantization::fp8});
  }
  static void TearDownTestSuite() { folder_.reset(); }
  void SetUp() override {
    for (auto const& name : outputs()) fs::remove_all(path(name));
  }

  static std::string path(std::string const& name) { return folder_->file(name); }

  static Seen save(std::string const& checkpoint, int ranks, bool resume, AfterBlock const& after_block = {},
                   std::function<void(StateDict&)> const& change = {}) {
    Seen seen;
    std::mutex mutex;
    auto const on_rank = [&](Communicator& world) {
      SaveOptions options{.resume = resume};
      options.call.threads = 1;  // so that every block is told by itself
      if (world.rank() == 0) {
        options.call.notice = [&](Notice const& notice) {
          (notice.warning ? seen.warnings : seen.notices).push_back(notice.text);
        };
        options.call.progress = [&](Progress const& progress) {
          if (progress.phase != "store") return;
          ++seen.blocks;
          if (after_block) after_block(seen.blocks);
        };
      }
      auto const mesh = make_mesh(world.size());
      auto state = load(open_checkpoint(path(checkpoint), world), mesh, mesh.coordinate(world.rank()));
      if (change) change(state);
      auto const report = save_recorded_store(state, path("out.h5"), world, options, kEachMebibyte);
      std::lock_guard const lock(mutex);
      seen.written += report.bytes_written;
      seen.resumed = report.resumed;
    };
    try {
      if (auto const error = exceptions_of_ranks(ranks, on_rank).front()) std::rethrow_exception(error);
    } catch (Error const& error) {
      seen.code = error.code;
    }
    return seen;
  }

  static std::vector<std::string> outputs() {
    std::vector<std::string> names;
    for (auto const& entry : fs::directory_iterator(folder_->path())) {
      auto const name = entry.path().filename().string();
      if (name.starts_with("out")) names.push_back(name);
    }
    std::ranges::sort(names);
    return names;
  }
  static std::string partial() {
    for (auto const& name : outputs()) {
      if (name.find(".partial-") != std::string::npos && !name.ends_with(".progress")) return path(name);
    }
    return {};
  }
  /// As a run leaves it that is stopped when all is written, and all but the last part recorded.
  static Seen all_written(std::string const& checkpoint) {
    auto const whole = save(checkpoint, 1, false);
    expected_ = file_bytes(path("out.h5"));
    fs::remove(path("out.h5"));
    EXPECT_EQ(save(checkpoint, 1, true, interrupt_after(whole.blocks)).code, ExitCode::terminated);
    EXPECT_FALSE(partial().empty());
    return whole;
  }

  static inline std::unique_ptr<TempDir> folder_;
  static inline Bytes expected_;
};

TEST_P(ResumedStores, EndInTheFileOfAWholeRunWhereverTheyWereInterruptedAndOnHoweverManyRanks) {
  auto const whole = save(GetParam(), 2, false);
  ASSERT_EQ(whole.code, ExitCode::done);
  auto const expected = file_bytes(path("out.h5"));
  std::array<std::uint64_t, 3> blocks{};
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    fs::remove(path("out.h5"));
    blocks[i] = save(GetParam(), static_cast<int>(i) + 1, true).blocks;
  }
  constexpr std::uint64_t places = 7;
  std::array<std::uint64_t, 3> most{};  // segments that were taken over, by the ranks of the run before
  std::uint64_t of = 0;
  for (std::uint64_t place = 0; place <= places; ++place) {
    fs::remove(path("out.h5"));
    auto const ranks = 1 + place % 3;
    auto const at = std::max<std::uint64_t>(1, blocks[ranks - 1] * place / places);
    ASSERT_EQ(save(GetParam(), static_cast<int>(ranks), true, interrupt_after(at)).code, ExitCode::terminated);
    ASSERT_FALSE(fs::exists(path("out.h5")));
    auto const rest = save(GetParam(), static_cast<int>(1 + (place + 1) % 3), true);
    ASSERT_EQ(rest.code, ExitCode::done) << place;
    EXPECT_TRUE(file_bytes(path("out.h5")) == expected) << place;
    EXPECT_THAT(outputs(), ElementsAre("out.h5")) << place;
    auto const taken_over = rest.resumed.value_or(Resumed{});
    EXPECT_EQ(rest.written + taken_over.bytes, whole.written) << place;
    auto& before = most[ranks - 1];
    EXPECT_GE(taken_over.segments, before) << place;
    before = taken_over.segments;
    of = std::max(of, taken_over.of);
  }
  EXPECT_GT(of, 3U);
  EXPECT_GE(*std::ranges::max_element(most), of - 1) << "all but the part that was being read back";
}

INSTANTIATE_TEST_SUITE_P(Of, ResumedStores, testing::Values("bf16", "fp8"));

TEST_F(ResumedStores, WriteAPartWithAChangedBitAgain) {
  auto const whole = all_written("bf16");
  auto const size = fs::file_size(partial());
  flip_byte(partial(), size / 2);
  auto const rest = save("bf16", 2, true);
  ASSERT_EQ(rest.code, ExitCode::done);
  EXPECT_THAT(rest.warnings,
              ElementsAre(HasSubstr("not what an earlier run wrote there, so it is written again: piece ")));
  EXPECT_EQ(rest.resumed.value().segments, rest.resumed.value().of - 2);
  EXPECT_EQ(rest.written + rest.resumed.value().bytes, whole.written);
  EXPECT_TRUE(file_bytes(path("out.h5")) == expected_);
}

TEST_F(ResumedStores, AreMadeAnewWhereTheirMetadataAreDamaged) {
  auto const whole = all_written("bf16");
  auto bytes = file_bytes(partial());
  std::string_view const text(reinterpret_cast<char const*>(bytes.data()), bytes.size());
  flip_byte(partial(), text.find("input_layernorm"));
  auto const rest = save("bf16", 2, true);
  ASSERT_EQ(rest.code, ExitCode::done);
  EXPECT_EQ(rest.resumed.value().segments, 0U);
  EXPECT_EQ(rest.written, whole.written);
  EXPECT_TRUE(file_bytes(path("out.h5")) == expected_);
}

TEST_F(ResumedStores, OfOtherValuesAreNotTakenOver) {
  all_written("bf16");
  auto const change = [](StateDict& state) {
    state.tensors.at("model.language_model.norm.weight").data.span()[0] ^= std::byte{1};
  };
  auto const other = save("bf16", 1, true, {}, change);
  ASSERT_EQ(other.code, ExitCode::done);
  EXPECT_FALSE(other.resumed);
  EXPECT_FALSE(file_bytes(path("out.h5")) == expected_);
  EXPECT_FALSE(partial().empty());
}

TEST_F(ResumedStores, LeaveNothingOfARunThatDoesNotResume) {
  auto const blocks = save("bf16", 1, false).blocks;
  fs::remove(path("out.h5"));
  EXPECT_EQ(save("bf16", 1, false, interrupt_after(blocks)).code, ExitCode::terminated);
  EXPECT_THAT(outputs(), IsEmpty());
}

/// What is compared with the originals and what is recorded in the store are proved together with what was taken over.
TEST_F(ResumedStores, GoHomeInTheLayoutOfTheirSourceHoweverOftenTheyAreInterrupted) {
  ASSERT_EQ(save("fp8", 2, false).code, ExitCode::done);
  std::uint64_t taken_over = 0;
  auto const export_on = [&](int ranks, std::uint64_t blocks) {
    std::atomic<std::uint64_t> seen = 0;
    auto const errors = exceptions_of_ranks(ranks, [&](Communicator& world) {
      ExportOptions options{
          .layout = ExportLayout::source, .source = open_checkpoint(path("fp8"), world), .resume = true};
      options.call.threads = 1;
      if (world.rank() == 0) {
        options.call.progress = [&](Progress const& progress) {
          if (progress.phase == "to_hf" && ++seen == blocks) throw Interrupted();
        };
      }
      auto const store = open_checkpoint(path("out.h5"), world, {.store = &native_store()});
      auto const report =
          export_checkpoint(*store, path("out"), world, options, VerifyLevel::reread, {.stage_bytes = 1});
      if (world.rank() == 0) taken_over = report.resumed.value_or(Resumed{}).segments;
    });
    if (blocks == 0 && errors.front()) std::rethrow_exception(errors.front());
    return seen.load();
  };
  auto const blocks = export_on(1, 0);
  fs::remove_all(path("out"));
  export_on(1, blocks * 3 / 4);
  export_on(1, blocks / 3);
  EXPECT_NO_THROW(export_on(2, 0));
  EXPECT_GT(taken_over, 0U);
  for (auto const& entry : fs::directory_iterator(path("fp8"))) {
    EXPECT_TRUE(file_bytes(entry.path().string()) == file_bytes(path("out") + "/" + entry.path().filename().string()))
        << entry.path();
  }
}

}  // namespace
}  // namespace rankslice::test

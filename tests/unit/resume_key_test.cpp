// The key by which a run finds what an earlier one left: of all that decides the bytes, and of nothing else.

#include "resume_key.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>

#include "copied_slices.hpp"
#include "support/raw_checkpoint.hpp"
#include "support/temp_dir.hpp"

namespace rankslice::test {
namespace {

namespace fs = std::filesystem;
using testing::MatchesRegex;

class ResumeKey : public testing::Test {
 protected:
  void SetUp() override { write_small_checkpoint(path("source")); }
  [[nodiscard]] std::string path(std::string const& name) const { return folder_.file(name); }
  [[nodiscard]] std::string key(std::string const& folder = "source", ExportOptions const& options = {},
                                OpenOptions const& open = {}) const {
    auto const source = open_checkpoint(path(folder), open);
    return resume_key(*source, make_export_target(*source, options), std::nullopt);
  }
  /// The only file of the source whose name ends so.
  [[nodiscard]] std::string file(std::string_view end) const {
    for (auto const& entry : fs::directory_iterator(path("source"))) {
      if (entry.path().string().ends_with(end)) return entry.path().string();
    }
    return {};
  }

  TempDir folder_;
};

TEST_F(ResumeKey, IsSixteenHexDigits) { EXPECT_THAT(key(), MatchesRegex("[0-9a-f]{16}")); }

TEST_F(ResumeKey, DoesNotKnowWhereTheSourceIs) {
  auto const expected = key();
  fs::rename(path("source"), path("elsewhere"));
  EXPECT_EQ(key("elsewhere"), expected);
}

TEST_F(ResumeKey, IsAnotherOneWhereAFileOfTheSourceWasWrittenTo) {
  for (auto const* const end : {".safetensors", "config.json"}) {
    auto const before = key();
    fs::last_write_time(file(end), fs::last_write_time(file(end)) + std::chrono::seconds(1));
    EXPECT_NE(key(), before) << end;
  }
}

TEST_F(ResumeKey, IsAnotherOneOfOtherOptions) {
  auto const selected = [](std::string_view name) { return name == kGateUpOfLayer2; };
  EXPECT_NE(key("source", {.keys = selected}), key());
  EXPECT_NE(key("source", {}, {.dtype = DType::F32}), key());
}

TEST_F(ResumeKey, DoesNotKnowWhoWrites) { EXPECT_EQ(key("source", {.overwrite = true, .gather = true}), key()); }

TEST_F(ResumeKey, OfAStateIsThatOfItsValues) {
  auto const source = open_checkpoint(path("source"));
  auto const target = make_export_target(*source, {});
  Digests held(source->model);
  auto const exported = resume_key(held, target, std::nullopt);
  auto const stored = resume_key(held, *source);
  EXPECT_NE(exported, stored);
  EXPECT_NE(resume_key(held, target, storage_of(source->model, *source)), exported) << "of what is copied";
  ++held.source.of(3)[0];
  EXPECT_NE(resume_key(held, target, std::nullopt), exported);
  EXPECT_NE(resume_key(held, *source), stored);
}

}  // namespace
}  // namespace rankslice::test

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>

#include "io/staged_output.hpp"
#include "support/failing_syscall.hpp"
#include "support/refusal.hpp"
#include "support/temp_dir.hpp"

namespace rankslice {

namespace {

namespace fs = std::filesystem;
using test::outcome_with_failing;
using test::refusal_of;
using test::TempDir;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Optional;
using testing::StartsWith;
using testing::UnorderedElementsAre;
using Kind = StagedOutput::Kind;

constexpr auto* kKey = "00112233aabbccdd";
SegmentRecord const kSegment{"model.safetensors", {1, 0, 2}};

void put_file(fs::path const& path, std::string const& text) { std::ofstream(path) << text; }

std::string content(fs::path const& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// Outputs as runs of one key leave them, one after the other.
class ResumedOutput : public testing::Test {
 protected:
  std::vector<std::string> names_beside() const {
    std::vector<std::string> names;
    for (auto const& entry : fs::directory_iterator(dir_.path())) names.push_back(entry.path().filename().string());
    return names;
  }

  /// What a run leaves that was stopped after one segment.
  void interrupt_one() const {
    StagedOutput staged(out_, Kind::folder, true, kKey);
    put_file(staged.path() + "/file", "begun");
    staged.progress()->append(std::vector{kSegment});
    staged.keep_unfinished();
  }

  std::string begun_afresh() const {
    StagedOutput staged(out_, Kind::folder, true, kKey);
    EXPECT_FALSE(staged.taken_over());
    EXPECT_THAT(staged.progress()->records(), IsEmpty());
    EXPECT_TRUE(fs::is_empty(staged.path()));
    return staged.path();
  }

  TempDir dir_;
  std::string out_ = dir_.file("OUT");
  std::string partial_ = dir_.file("OUT.partial-00112233aabbccdd");
  std::string progress_ = dir_.file("OUT.partial-00112233aabbccdd.progress");
};

TEST_F(ResumedOutput, TheNextRunOfTheKeyTakesOverWhatOneKept) {
  interrupt_one();
  StagedOutput staged(out_, Kind::folder, false, kKey);
  EXPECT_EQ(staged.path(), partial_);
  EXPECT_TRUE(staged.taken_over());
  EXPECT_THAT(staged.progress()->records(), ElementsAre(kSegment));
  EXPECT_EQ(content(partial_ + "/file"), "begun");
  EXPECT_THAT(staged.leftovers(), IsEmpty());
  staged.publish();
  EXPECT_EQ(content(out_ + "/file"), "begun");
  EXPECT_THAT(names_beside(), ElementsAre("OUT"));
}

TEST_F(ResumedOutput, AFileIsTakenOverAsAFolderIs) {
  {
    StagedOutput staged(out_, Kind::file, false, kKey);
    put_file(staged.path(), "begun");
    staged.keep_unfinished();
  }
  StagedOutput staged(out_, Kind::file, false, kKey);
  EXPECT_TRUE(staged.taken_over());
  staged.publish();
  EXPECT_EQ(content(out_), "begun");
  EXPECT_THAT(names_beside(), ElementsAre("OUT"));
}

TEST_F(ResumedOutput, DroppedWithoutAWordItLeavesWhatAnEarlierRunDidAndNothingElse) {
  { StagedOutput const begun(out_, Kind::folder, false, kKey); }
  EXPECT_THAT(names_beside(), IsEmpty());
  interrupt_one();
  { StagedOutput const dropped(out_, Kind::folder, false, kKey); }
  EXPECT_TRUE(StagedOutput(out_, Kind::folder, false, kKey).taken_over());
}

TEST_F(ResumedOutput, WhatAnEarlierRunLeftIsRemovedWhereThatIsSaid) {
  interrupt_one();
  {
    StagedOutput staged(out_, Kind::folder, false, kKey);
    staged.remove_unfinished();
  }
  EXPECT_THAT(names_beside(), IsEmpty());
}

// A copy in the place of the progress file is what another process puts there where locks do not keep it out.
TEST_F(ResumedOutput, OneThatAnotherRunHasTakenOverIsNeitherPublishedNorRemoved) {
  {
    StagedOutput first(out_, Kind::folder, false, kKey);
    put_file(first.path() + "/file", "begun");
    first.progress()->append(std::vector{kSegment});
    fs::copy_file(progress_, progress_ + ".copy");
    fs::rename(progress_ + ".copy", progress_);
    auto const refusal = refusal_of([&] { first.publish(); });
    EXPECT_EQ(refusal.code, ExitCode::io);
    EXPECT_EQ(refusal.message, progress_ + ": another run has taken this over");
    EXPECT_FALSE(first.published());
  }
  StagedOutput second(out_, Kind::folder, false, kKey);
  EXPECT_THAT(second.progress()->records(), ElementsAre(kSegment));
  second.publish();
  EXPECT_EQ(content(out_ + "/file"), "begun");
}

TEST_F(ResumedOutput, WhatWasPublishedJustBeforeAKillIsSaidToBeComplete) {
  interrupt_one();
  fs::rename(partial_, out_);
  for (auto const* key : {kKey, ""}) {  // a command looks before it knows the key
    EXPECT_THAT(
        refusal_of([&] { StagedOutput(out_, Kind::folder, false, key); }).message,
        AllOf(StartsWith(out_ + " exists; pass --overwrite"), HasSubstr("seems to be complete"), HasSubstr(progress_)));
  }
}

TEST_F(ResumedOutput, WhatStandsBesideAnUnfinishedOutputIsNotSaidToBeComplete) {
  interrupt_one();
  fs::create_directory(out_);
  put_file(out_ + "/file", "old");
  EXPECT_EQ(refusal_of([&] { StagedOutput(out_, Kind::folder, false, kKey); }).message,
            out_ + " exists; pass --overwrite to replace it");
}

TEST_F(ResumedOutput, LeftoversOfTheNamesThatReplacingNeedsAreInNobodysWay) {
  fs::create_directory(out_);
  put_file(out_ + "/file", "old");
  interrupt_one();
  auto const own = StagedOutput(dir_.file("OUT"), Kind::folder, true).path();
  put_file(own, "evidence");
  put_file(own + "-2", "more");
  StagedOutput(out_, Kind::folder, true, kKey).publish();
  EXPECT_EQ(content(out_ + "/file"), "begun");
  EXPECT_EQ(content(own), "evidence");
  EXPECT_EQ(content(own + "-2"), "more");
}

TEST_F(ResumedOutput, OneThatIsRefusedLeavesNoProgressOfItsOwn) {
  put_file(partial_, "evidence");
  EXPECT_EQ(refusal_of([&] { StagedOutput(out_, Kind::folder, false, kKey); }).code, ExitCode::cannot_create);
  EXPECT_THAT(names_beside(), ElementsAre("OUT.partial-00112233aabbccdd"));
}

TEST_F(ResumedOutput, WithoutAKeyNothingIsKept) {
  {
    StagedOutput staged(out_, Kind::folder, false);
    EXPECT_EQ(staged.progress(), nullptr);
    EXPECT_FALSE(staged.taken_over());
    staged.keep_unfinished();
  }
  EXPECT_THAT(names_beside(), IsEmpty());
}

TEST_F(ResumedOutput, AnotherKeyBeginsAfreshAndNamesWhatItFound) {
  interrupt_one();
  StagedOutput const staged(out_, Kind::folder, false, "ffffffffffffffff");
  EXPECT_FALSE(staged.taken_over());
  EXPECT_THAT(staged.leftovers(), ElementsAre(partial_));
  EXPECT_THAT(staged.warnings(), ElementsAre(StartsWith(partial_ + ": belongs to a run")));
  EXPECT_TRUE(fs::exists(partial_ + "/file"));
}

TEST_F(ResumedOutput, ProgressWithoutItsOutputIsNamedAsALeftoverOfThatName) {
  interrupt_one();
  fs::remove_all(partial_);
  EXPECT_THAT(StagedOutput(out_, Kind::folder, false).leftovers(), ElementsAre(partial_));
}

TEST_F(ResumedOutput, NamesWithPartialAndProgressInThemAreNoPuzzle) {
  auto const strange = dir_.file("a.progress.partial-b");
  fs::create_directory(strange + ".partial-x");
  put_file(strange + ".partial-x.progress", "");
  EXPECT_THAT(StagedOutput(strange, Kind::folder, false).leftovers(), ElementsAre(strange + ".partial-x"));
}

TEST_F(ResumedOutput, ARelativePathIsTakenOverToo) {
  interrupt_one();
  auto const before = fs::current_path();
  fs::current_path(dir_.path());
  StagedOutput staged("OUT", Kind::folder, false, kKey);
  EXPECT_TRUE(staged.taken_over());
  EXPECT_THAT(staged.leftovers(), IsEmpty());
  staged.publish();
  fs::current_path(before);
  EXPECT_EQ(content(out_ + "/file"), "begun");
}

TEST_F(ResumedOutput, AfterACrashBetweenRenameAndRemovalTheRecordsAreOfNothing) {
  interrupt_one();
  fs::rename(partial_, out_);
  EXPECT_EQ(begun_afresh(), partial_);
}

TEST_F(ResumedOutput, FilesThatNobodyKeptARecordOfAreMadeAnew) {
  fs::create_directory(partial_);
  put_file(partial_ + "/file", "of whom?");
  begun_afresh();
}

TEST_F(ResumedOutput, FilesUnderADamagedRecordAreMadeAnew) {
  interrupt_one();
  fs::resize_file(progress_, 20);
  begun_afresh();
}

TEST_F(ResumedOutput, SomethingElseInItsPlaceIsRefusedAndKept) {
  interrupt_one();
  fs::remove_all(partial_);
  put_file(partial_, "evidence");
  auto const refusal = refusal_of([&] { StagedOutput(out_, Kind::folder, false, kKey); });
  EXPECT_EQ(refusal.code, ExitCode::cannot_create);
  EXPECT_THAT(refusal.message, AllOf(StartsWith(partial_), HasSubstr("remove it first")));
  EXPECT_EQ(content(partial_), "evidence");
  EXPECT_TRUE(fs::exists(progress_));
}

TEST_F(ResumedOutput, ASecondRunOfTheKeyIsRefusedAndLeavesTheFirstAlone) {
  StagedOutput first(out_, Kind::folder, false, kKey);
  put_file(first.path() + "/file", "new");
  auto const refusal = refusal_of([&] { StagedOutput(out_, Kind::folder, false, kKey); });
  EXPECT_EQ(refusal.code, ExitCode::cannot_create);
  EXPECT_THAT(refusal.message, HasSubstr(fmt::format("held by process {} on ", ::getpid())));
  first.publish();
  EXPECT_EQ(content(out_ + "/file"), "new");
}

TEST_F(ResumedOutput, OneThatIsRefusedForWhatStandsThereKeepsWhatAnEarlierRunLeft) {
  interrupt_one();
  fs::create_directory(out_);
  put_file(out_ + "/file", "old");
  EXPECT_EQ(refusal_of([&] { StagedOutput(out_, Kind::folder, false, kKey); }).code, ExitCode::cannot_create);
  EXPECT_TRUE(StagedOutput(out_, Kind::folder, true, kKey).taken_over());
}

TEST_F(ResumedOutput, WhatIsReplacedIsGoneAfterwards) {
  fs::create_directory(out_);
  put_file(out_ + "/only old", "old");
  interrupt_one();
  StagedOutput staged(out_, Kind::folder, true, kKey);
  EXPECT_TRUE(staged.taken_over());
  staged.publish();
  EXPECT_EQ(content(out_ + "/file"), "begun");
  EXPECT_FALSE(fs::exists(out_ + "/only old"));
  EXPECT_THAT(names_beside(), ElementsAre("OUT"));
}

/// The same under system calls that fail.
class FailingResume : public ResumedOutput {
 protected:
  void SetUp() override {
    if (!outcome_with_failing(SYS_getppid, EPERM, [] {})) GTEST_SKIP() << "system calls cannot be filtered here";
  }

  /// A run that is killed in its publish, before `call`.
  void crash_publish_before(long call) const {
    EXPECT_THAT(outcome_with_failing(call, EIO,
                                     [&] {
                                       StagedOutput staged(out_, Kind::folder, true, kKey);
                                       staged.keep_unfinished();
                                       staged.publish();
                                     }),
                Optional(StartsWith("74 ")));
  }
};

// The old output has the name of the new one's key for no moment: the next run would publish parts of it.
TEST_F(FailingResume, AReplacedOutputIsNeverTakenForAPartOfTheNewOne) {
  fs::create_directory(out_);
  put_file(out_ + "/only old", "old");
  interrupt_one();
  crash_publish_before(SYS_unlinkat);  // exchanged, and what was replaced is not yet removed
  EXPECT_EQ(content(out_ + "/file"), "begun");
  EXPECT_THAT(begun_afresh(), partial_);
}

TEST_F(FailingResume, WhereTheSystemCannotTellWhetherSomeoneIsAtWorkItSaysSo) {
  interrupt_one();
  std::string const expected = partial_ + ": the file system has no locks";
  auto const outcome = outcome_with_failing(SYS_flock, ENOLCK, [&] {
    StagedOutput const staged(out_, Kind::folder, false, kKey);
    if (!staged.taken_over()) throw IoError(ExitCode::io, "not taken over");
    for (auto const& warning : staged.warnings()) throw IoError(ExitCode::io, warning);
  });
  EXPECT_THAT(outcome, Optional(AllOf(StartsWith("74 " + expected),
                                      HasSubstr(fmt::format("whether process {} on ", ::getpid())))));
  StagedOutput const with_locks(out_, Kind::folder, false, kKey);
  EXPECT_THAT(with_locks.warnings(), IsEmpty());
}

TEST_F(FailingResume, WhatCannotBeRemovedIsNamedAndLeavesNoProgress) {
  fs::create_directory(partial_);
  put_file(partial_ + "/file", "of whom?");
  EXPECT_THAT(outcome_with_failing(SYS_unlinkat, EACCES, [&] { StagedOutput(out_, Kind::folder, false, kKey); }),
              Optional(AllOf(StartsWith("73 " + partial_ + " cannot be removed"), HasSubstr("Permission denied"))));
  EXPECT_THAT(names_beside(), ElementsAre("OUT.partial-00112233aabbccdd"));
}

TEST_F(FailingResume, AFolderThatCannotBeMadeLeavesNoProgress) {
  EXPECT_THAT(outcome_with_failing(SYS_mkdir, EACCES, [&] { StagedOutput(out_, Kind::folder, false, kKey); }),
              Optional(AllOf(StartsWith("73 " + partial_), HasSubstr("Permission denied"))));
  EXPECT_THAT(names_beside(), IsEmpty());
}

}  // namespace

}  // namespace rankslice

#include "io/staged_output.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <optional>

#include "rankslice/error.hpp"

#include "io/folders.hpp"
#include "support/failing_syscall.hpp"
#include "support/temp_dir.hpp"

namespace rankslice {

namespace {

namespace fs = std::filesystem;
using test::outcome_with_failing;
using test::TempDir;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Optional;
using testing::StartsWith;
using testing::UnorderedElementsAre;
using Kind = StagedOutput::Kind;

void put_file(fs::path const& path, std::string const& text) { std::ofstream(path) << text; }

std::string content(fs::path const& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

class StagedOutputTest : public testing::Test {
 protected:
  std::vector<std::string> names_beside() const {
    std::vector<std::string> names;
    for (auto const& entry : fs::directory_iterator(dir_.path())) names.push_back(entry.path().filename().string());
    return names;
  }

  void make_old_folder() {
    fs::create_directory(out_);
    put_file(out_ + "/file", "old");
  }

  std::string refusal(std::string const& path, Kind kind, bool overwrite) {
    try {
      StagedOutput const staged(path, kind, overwrite);
      ADD_FAILURE() << "accepted";
    } catch (IoError const& error) {
      EXPECT_EQ(error.code, ExitCode::cannot_create);
      EXPECT_FALSE(error.file.empty());
      return error.what();
    }
    return {};
  }

  TempDir dir_;
  std::string out_ = dir_.file("OUT");
};

TEST_F(StagedOutputTest, AFolderAppearsUnderItsNameOnlyWhenPublished) {
  StagedOutput staged(out_, Kind::folder, false);
  EXPECT_THAT(staged.path(), StartsWith(out_ + ".partial-"));
  EXPECT_THAT(staged.path(), testing::EndsWith("-" + std::to_string(::getpid())));
  fs::create_directory(staged.path() + "/sub");
  put_file(staged.path() + "/sub/file", "new");
  EXPECT_FALSE(fs::exists(out_));
  staged.publish();
  EXPECT_EQ(content(out_ + "/sub/file"), "new");
  EXPECT_THAT(names_beside(), ElementsAre("OUT"));
}

TEST_F(StagedOutputTest, AFileAppearsUnderItsNameOnlyWhenPublished) {
  StagedOutput staged(out_, Kind::file, false);
  EXPECT_FALSE(fs::exists(staged.path()));
  put_file(staged.path(), "new");
  EXPECT_FALSE(fs::exists(out_));
  staged.publish();
  EXPECT_EQ(content(out_), "new");
  EXPECT_THAT(names_beside(), ElementsAre("OUT"));
}

TEST_F(StagedOutputTest, DroppedUnpublishedItLeavesNothing) {
  {
    StagedOutput const folder(out_, Kind::folder, false);
    fs::create_directories(folder.path() + "/a/b");
    put_file(folder.path() + "/a/b/file", "new");
    StagedOutput const file(dir_.file("FILE"), Kind::file, false);
    put_file(file.path(), "new");
  }
  EXPECT_TRUE(names_beside().empty());
}

TEST_F(StagedOutputTest, WhatIsReplacedStaysUntilThePublishAndIsGoneAfterIt) {
  make_old_folder();
  {
    StagedOutput const dropped(out_, Kind::folder, true);
    put_file(dropped.path() + "/file", "new");
  }
  EXPECT_EQ(content(out_ + "/file"), "old");

  StagedOutput staged(out_, Kind::folder, true);
  put_file(staged.path() + "/other", "new");
  staged.publish();
  EXPECT_EQ(content(out_ + "/other"), "new");
  EXPECT_FALSE(fs::exists(out_ + "/file"));
  EXPECT_THAT(names_beside(), ElementsAre("OUT"));
}

TEST_F(StagedOutputTest, AFileIsReplacedAsAWhole) {
  put_file(out_, "old and long");
  StagedOutput staged(out_, Kind::file, true);
  put_file(staged.path(), "new");
  staged.publish();
  EXPECT_EQ(content(out_), "new");
  EXPECT_THAT(names_beside(), ElementsAre("OUT"));
}

TEST_F(StagedOutputTest, WhatExistsNeedsOverwrite) {
  make_old_folder();
  EXPECT_EQ(refusal(out_, Kind::folder, false), out_ + " exists; pass --overwrite to replace it");
  put_file(dir_.file("FILE"), "old");
  EXPECT_EQ(refusal(dir_.file("FILE"), Kind::file, false),
            dir_.file("FILE") + " exists; pass --overwrite to replace it");
  EXPECT_EQ(content(out_ + "/file"), "old");
}

TEST_F(StagedOutputTest, AnEmptyFolderDoesNot) {
  fs::create_directory(out_);
  StagedOutput staged(out_, Kind::folder, false);
  put_file(staged.path() + "/file", "new");
  staged.publish();
  EXPECT_EQ(content(out_ + "/file"), "new");
}

TEST_F(StagedOutputTest, AFileNeverReplacesAFolderNorAFolderAFile) {
  make_old_folder();
  EXPECT_THAT(refusal(out_, Kind::file, true), AllOf(HasSubstr(out_), HasSubstr("is a folder")));
  put_file(dir_.file("FILE"), "old");
  EXPECT_THAT(refusal(dir_.file("FILE"), Kind::folder, true), HasSubstr("is a file"));
  ASSERT_EQ(::symlink(out_.c_str(), dir_.file("LINK").c_str()), 0);
  EXPECT_THAT(refusal(dir_.file("LINK"), Kind::folder, true), HasSubstr("symbolic link"));
}

TEST_F(StagedOutputTest, AMissingParentIsNamed) {
  auto const parent = dir_.file("absent");
  EXPECT_THAT(refusal(parent + "/OUT", Kind::folder, false), HasSubstr("there is no folder " + parent));
}

TEST_F(StagedOutputTest, NamesThatCannotBeRenamedAreRefused) {
  for (auto const* path : {"", "/", ".", "..", "some/.."}) {
    EXPECT_THAT(refusal(path, Kind::folder, true), HasSubstr("no name")) << path;
  }
}

TEST_F(StagedOutputTest, TrailingSlashesDoNotMoveTheTemporaryIntoTheFolder) {
  StagedOutput staged(out_ + "//", Kind::folder, false);
  EXPECT_THAT(staged.path(), StartsWith(out_ + ".partial-"));
  staged.publish();
  EXPECT_TRUE(fs::is_directory(out_));
}

TEST_F(StagedOutputTest, RelativePathsAreRelativeToTheWorkingFolder) {
  auto const before = fs::current_path();
  fs::current_path(dir_.path());
  StagedOutput staged("OUT", Kind::folder, false);
  staged.publish();
  fs::current_path(before);
  EXPECT_TRUE(fs::is_directory(out_));
}

TEST_F(StagedOutputTest, LeftoversOfOtherRunsAreNamedAndKept) {
  fs::create_directory(out_ + ".partial-node7-12");
  put_file(out_ + ".partial-node3-4", "");
  put_file(out_ + "-unrelated", "");
  StagedOutput const staged(out_, Kind::folder, false);
  EXPECT_THAT(staged.leftovers(), ElementsAre(out_ + ".partial-node3-4", out_ + ".partial-node7-12"));
  EXPECT_TRUE(fs::exists(out_ + ".partial-node7-12"));
}

TEST_F(StagedOutputTest, ALeftoverUnderTheSameTemporaryNameIsRefusedAndKept) {
  for (auto const kind : {Kind::folder, Kind::file}) {
    std::string const taken = StagedOutput(out_, kind, false).path();
    put_file(taken, "evidence");
    EXPECT_THAT(refusal(out_, kind, false), AllOf(StartsWith(taken), HasSubstr("left over")));
    EXPECT_EQ(content(taken), "evidence");
    fs::remove(taken);
  }
}

TEST_F(StagedOutputTest, WhatAppearsBetweenStartAndPublishIsNotReplaced) {
  std::optional<StagedOutput> staged(std::in_place, out_, Kind::folder, false);
  put_file(staged->path() + "/file", "new");
  make_old_folder();
  EXPECT_THROW(staged->publish(), IoError);
  EXPECT_EQ(content(out_ + "/file"), "old");
  staged.reset();
  EXPECT_THAT(names_beside(), ElementsAre("OUT"));
}

TEST_F(StagedOutputTest, ATemporaryThatVanishedIsAnErrorAndNotAnEmptyOutput) {
  StagedOutput staged(out_, Kind::file, false);
  try {
    staged.publish();
    FAIL();
  } catch (IoError const& error) {
    EXPECT_EQ(error.code, ExitCode::io);
    EXPECT_THAT(error.what(), HasSubstr("No such file"));
  }
  EXPECT_TRUE(names_beside().empty());
}

/// The same under system calls that fail.
class FailingPublish : public StagedOutputTest {
 protected:
  void SetUp() override {
    if (!outcome_with_failing(SYS_getppid, EPERM, [] {})) GTEST_SKIP() << "system calls cannot be filtered here";
  }

  std::optional<std::string> publish_with_failing(long call, int error, bool overwrite) {
    return outcome_with_failing(call, error, [&] {
      StagedOutput staged(out_, Kind::folder, overwrite);
      put_file(staged.path() + "/file", "new");
      staged.publish();
    });
  }
};

TEST_F(FailingPublish, FileSystemsWithoutRenameFlagsPublishAllTheSame) {
  for (auto const error : {EINVAL, ENOSYS}) {
    EXPECT_THAT(publish_with_failing(SYS_renameat2, error, false), Optional(std::string("done")));
    EXPECT_EQ(content(out_ + "/file"), "new");
    EXPECT_THAT(names_beside(), ElementsAre("OUT"));
    fs::remove_all(out_);
  }
}

TEST_F(FailingPublish, FileSystemsWithoutExchangeReplaceAllTheSame) {
  make_old_folder();
  put_file(out_ + "/only old", "");
  EXPECT_THAT(publish_with_failing(SYS_renameat2, EINVAL, true), Optional(std::string("done")));
  EXPECT_EQ(content(out_ + "/file"), "new");
  EXPECT_FALSE(fs::exists(out_ + "/only old"));
  EXPECT_THAT(names_beside(), ElementsAre("OUT"));
}

TEST_F(FailingPublish, AFailedRenameLeavesWhatStoodThere) {
  EXPECT_THAT(publish_with_failing(SYS_renameat2, EXDEV, false),
              Optional(AllOf(StartsWith("74 " + out_), HasSubstr("cross-device"))));
  EXPECT_TRUE(names_beside().empty());
  make_old_folder();
  EXPECT_THAT(publish_with_failing(SYS_renameat2, EXDEV, true), Optional(StartsWith("74 " + out_)));
  EXPECT_EQ(content(out_ + "/file"), "old");
  EXPECT_THAT(names_beside(), ElementsAre("OUT"));
}

TEST_F(FailingPublish, AFolderThatCannotBeSyncedIsNotPublished) {
  EXPECT_THAT(publish_with_failing(SYS_fsync, EIO, false), Optional(AllOf(StartsWith("74 "), HasSubstr("fsync"))));
  EXPECT_TRUE(names_beside().empty());
}

TEST_F(FailingPublish, FileSystemsWithoutFsyncOfFoldersPublishAllTheSame) {
  EXPECT_THAT(publish_with_failing(SYS_fsync, EINVAL, false), Optional(std::string("done")));
  EXPECT_EQ(content(out_ + "/file"), "new");
}

TEST_F(FailingPublish, ANameTakenWithoutBeingSeenIsNotReplaced) {
  EXPECT_THAT(publish_with_failing(SYS_renameat2, EEXIST, false),
              Optional(AllOf(StartsWith("73 " + out_), HasSubstr("meanwhile"))));
}

TEST_F(FailingPublish, AFolderThatCannotBeMadeIsNamed) {
  EXPECT_THAT(publish_with_failing(SYS_mkdir, EACCES, false),
              Optional(AllOf(StartsWith("73 " + out_ + ".partial-"), HasSubstr("Permission denied"))));
}

TEST(SyncDirectory, NeedsAFolder) {
  TempDir const dir;
  EXPECT_NO_THROW(sync_directory(dir.path().string()));
  EXPECT_THROW(sync_directory(dir.file("absent")), IoError);
}

}  // namespace

}  // namespace rankslice

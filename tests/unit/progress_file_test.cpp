#include "io/progress_file.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <fstream>
#include <functional>

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

constexpr auto* kKey = "00112233aabbccdd";

std::string const kFirstLine = "0bb0cd31709a898282ad3b374805ef18 rankslice-progress/1 00112233aabbccdd node7 1234\n";
std::string const kShard =
    "da80a3d6f1e7aff10cf35cb91498ba13 6 2 1:ab,ffffffffffffffff 5:1 model-00001-of-00002.safetensors\n";
std::string const kEmpty = "ea39c65f125e8d5f8cd6dc4738f57325 0 0 a name with spaces\n";
std::string const kOfOtherFormat =
    "a3cfb90fed326ac669910788989688dc rankslice-progress/2 00112233aabbccdd node7 1234\n";
SegmentRecord const kRecordOfShard{"model-00001-of-00002.safetensors", {0, 0xab, ~std::uint64_t{0}, 0, 0, 1}};
SegmentRecord const kRecordOfEmpty{"a name with spaces", {}};

class ProgressFileTest : public testing::Test {
 protected:
  void put(std::string const& text) const { std::ofstream(path_, std::ios::binary) << text; }

  std::string text() const {
    std::ifstream in(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  std::vector<SegmentRecord> records_found(std::string const& in_file) const {
    put(in_file);
    return ProgressFile(path_, kKey).records();
  }

  TempDir dir_;
  std::string path_ = dir_.file("OUT.partial-00112233aabbccdd.progress");
};

TEST_F(ProgressFileTest, ReadsWhatTheFormatSays) {
  put(kFirstLine + kShard + kEmpty);
  ProgressFile const progress(path_, kKey);
  EXPECT_THAT(progress.earlier_holder(), Optional(std::string("process 1234 on node7")));
  EXPECT_THAT(progress.records(), ElementsAre(kRecordOfShard, kRecordOfEmpty));
  EXPECT_TRUE(progress.locked());
}

TEST_F(ProgressFileTest, WritesWhatTheFormatSays) {
  ProgressFile progress(path_, kKey);
  EXPECT_EQ(progress.earlier_holder(), std::nullopt);
  progress.append(std::vector{kRecordOfShard});
  progress.append(std::vector{kRecordOfEmpty});
  EXPECT_THAT(text(), HasSubstr(" rankslice-progress/1 00112233aabbccdd "));
  EXPECT_THAT(text(), HasSubstr(fmt::format(" {}\n", ::getpid())));
  EXPECT_THAT(text(), testing::EndsWith("\n" + kShard + kEmpty));
}

TEST_F(ProgressFileTest, WhatIsAppendedIsThereForTheNextProcess) {
  ProgressFile(path_, kKey).append(std::vector{kRecordOfShard});
  ProgressFile(path_, kKey).append(std::vector{kRecordOfEmpty});
  EXPECT_THAT(ProgressFile(path_, kKey).records(), ElementsAre(kRecordOfShard, kRecordOfEmpty));
}

TEST(ProgressLines, CutAnywhereTheyKeepThoseThatAreWhole) {
  auto const whole = kShard + kEmpty;
  for (std::size_t size = 0; size <= whole.size(); ++size) {
    std::vector<SegmentRecord> expected;
    if (size >= kShard.size()) expected.push_back(kRecordOfShard);
    if (size >= whole.size()) expected.push_back(kRecordOfEmpty);
    EXPECT_EQ(from_lines(whole.substr(0, size)), expected) << size;
  }
}

TEST(ProgressLines, OneWithAChangedByteIsNoRecord) {
  for (std::size_t i = 0; i + 1 < kShard.size(); ++i) {
    auto damaged = kShard;
    damaged[i] = static_cast<char>(damaged[i] ^ 1);
    EXPECT_THAT(from_lines(damaged + kEmpty), ElementsAre(kRecordOfEmpty)) << i;
  }
}

TEST(ProgressLines, SumsComeBackWhereverTheirZerosAre) {
  std::vector<SegmentRecord> records;
  for (unsigned pattern = 0; pattern < 64; ++pattern) {
    SegmentRecord record{std::to_string(pattern), {}};
    for (unsigned bit = 0; bit < 6; ++bit) record.sums.push_back((pattern >> bit & 1U) * (bit + 0x123456789abcdefU));
    records.push_back(record);
  }
  EXPECT_EQ(from_lines(to_lines(records)), records);
}

TEST_F(ProgressFileTest, WhatComesBehindATornLineIsNotLost) {
  put(kFirstLine + kShard.substr(0, kShard.size() / 2));
  ProgressFile(path_, kKey).append(std::vector{kRecordOfEmpty});
  EXPECT_THAT(ProgressFile(path_, kKey).records(), ElementsAre(kRecordOfEmpty));
}

TEST_F(ProgressFileTest, NothingIsTakenOverFromAnotherKeyAnotherFormatOrADamagedFirstLine) {
  put(kFirstLine + kShard);
  {
    ProgressFile const of_other_key(path_, "ffffffffffffffff");
    EXPECT_EQ(of_other_key.earlier_holder(), std::nullopt);
    EXPECT_THAT(of_other_key.records(), IsEmpty());
  }
  for (auto const& first : {kOfOtherFormat, std::string("\n"), kFirstLine.substr(1)}) {
    EXPECT_THAT(records_found(first + kShard), IsEmpty()) << first;
  }
}

TEST_F(ProgressFileTest, ForgottenSegmentsStayForgotten) {
  ProgressFile progress(path_, kKey);
  progress.append(std::vector{kRecordOfShard, kRecordOfEmpty});
  progress.forget(std::vector{kRecordOfShard.name, std::string("never recorded")});
  EXPECT_THAT(progress.records(), ElementsAre(kRecordOfEmpty));
  progress.append(std::vector<SegmentRecord>{{"2", {2}}});
  EXPECT_EQ(refusal_of([&] { ProgressFile(path_, kKey); }).code, ExitCode::cannot_create);  // locked all the same
  progress = ProgressFile(dir_.file("other"), kKey);
  EXPECT_THAT(ProgressFile(path_, kKey).records(), ElementsAre(kRecordOfEmpty, SegmentRecord{"2", {2}}));
}

TEST_F(ProgressFileTest, AfterAllIsForgottenNothingIsThere) {
  {
    ProgressFile progress(path_, kKey);
    progress.append(std::vector{kRecordOfShard});
    progress.forget_all();
    EXPECT_THAT(progress.records(), IsEmpty());
  }
  EXPECT_THAT(ProgressFile(path_, kKey).records(), IsEmpty());
}

TEST_F(ProgressFileTest, AKilledRewriteLeavesTheFileAsItWas) {
  put(kFirstLine + kShard);
  std::ofstream(path_ + ".new") << kFirstLine;
  EXPECT_THAT(ProgressFile(path_, kKey).records(), ElementsAre(kRecordOfShard));
  EXPECT_FALSE(fs::exists(path_ + ".new"));
}

TEST_F(ProgressFileTest, AFolderInItsPlaceIsNamed) {
  fs::create_directory(path_);
  auto const refusal = refusal_of([&] { ProgressFile(path_, kKey); });
  EXPECT_EQ(refusal.code, ExitCode::cannot_create);
  EXPECT_THAT(refusal.message, AllOf(HasSubstr(path_), HasSubstr("Is a directory")));
}

/// A process that holds the file until it is killed.
class Holder {
 public:
  explicit Holder(std::string const& path) {
    std::array<int, 2> channel{};
    if (::pipe(channel.data()) != 0) return;
    process_ = ::fork();
    if (process_ == 0) {
      ProgressFile progress(path, kKey);
      progress.append(std::vector{kRecordOfShard});
      if (::write(channel[1], "!", 1) == 1) ::pause();
      std::_Exit(1);
    }
    ::close(channel[1]);
    char ready = 0;
    holds_ = ::read(channel[0], &ready, 1) == 1;
    ::close(channel[0]);
  }
  ~Holder() { kill(); }
  Holder(Holder const&) = delete;
  Holder& operator=(Holder const&) = delete;

  [[nodiscard]] bool holds() const { return holds_; }
  [[nodiscard]] ::pid_t process() const { return process_; }
  void kill() {
    if (process_ <= 0) return;
    ::kill(process_, SIGKILL);
    ::waitpid(process_, nullptr, 0);
    process_ = 0;
  }

 private:
  ::pid_t process_ = 0;
  bool holds_ = false;
};

TEST_F(ProgressFileTest, ASecondProcessIsToldWhoHoldsIt) {
  Holder const holder(path_);
  ASSERT_TRUE(holder.holds());
  auto const before = text();
  auto const refusal = refusal_of([&] { ProgressFile(path_, kKey); });
  EXPECT_EQ(refusal.code, ExitCode::cannot_create);
  EXPECT_THAT(refusal.message,
              AllOf(StartsWith(path_), HasSubstr(fmt::format("held by process {} on ", holder.process()))));
  EXPECT_EQ(text(), before);
}

TEST_F(ProgressFileTest, AKilledProcessHoldsNothing) {
  Holder holder(path_);
  ASSERT_TRUE(holder.holds());
  auto const process = holder.process();
  holder.kill();
  ProgressFile const progress(path_, kKey);
  EXPECT_THAT(progress.earlier_holder(), Optional(StartsWith(fmt::format("process {} on ", process))));
  EXPECT_THAT(progress.records(), ElementsAre(kRecordOfShard));
}

// As the refusal advises, for a lock that a dead host leaves behind.
TEST_F(ProgressFileTest, ACopyMovedOverItFreesItAndTheFormerHolderWritesNoMore) {
  ProgressFile former(path_, kKey);
  former.append(std::vector{kRecordOfShard});
  auto const refusal = refusal_of([&] { ProgressFile(path_, kKey); });
  EXPECT_THAT(refusal.message, HasSubstr(fmt::format("cp {0} {0}.copy && mv {0}.copy {0}", path_)));
  fs::copy_file(path_, path_ + ".copy");
  fs::rename(path_ + ".copy", path_);
  EXPECT_FALSE(former.held());
  ProgressFile const next(path_, kKey);
  EXPECT_TRUE(next.held());
  EXPECT_THAT(next.records(), ElementsAre(kRecordOfShard));
  auto const before = text();
  for (auto const& change : std::vector<std::function<void()>>{[&] { former.append(std::vector{kRecordOfEmpty}); },
                                                               [&] { former.forget(std::vector{kRecordOfShard.name}); },
                                                               [&] { former.forget_all(); }}) {
    auto const late = refusal_of(change);
    EXPECT_EQ(late.code, ExitCode::io);
    EXPECT_EQ(late.message, path_ + ": another run has taken this over");
  }
  EXPECT_EQ(text(), before);
}

TEST_F(ProgressFileTest, AFileSystemWithoutLocksIsToldApartFromOneWhereTheLockIsHeld) {
  if (!outcome_with_failing(SYS_getppid, EPERM, [] {})) GTEST_SKIP() << "system calls cannot be filtered here";
  for (auto const error : {ENOLCK, EOPNOTSUPP, ENOSYS}) {
    auto const outcome = outcome_with_failing(SYS_flock, error, [&] {
      ProgressFile progress(path_, kKey);
      progress.append(std::vector{kRecordOfShard});
      if (progress.locked()) throw IoError(ExitCode::io, "locked");
    });
    EXPECT_THAT(outcome, Optional(std::string("done"))) << error;
    EXPECT_THAT(ProgressFile(path_, kKey).records(), testing::Contains(kRecordOfShard));
  }
  EXPECT_THAT(outcome_with_failing(SYS_flock, EWOULDBLOCK, [&] { ProgressFile(path_, kKey); }),
              Optional(AllOf(StartsWith("73 "), HasSubstr("held by process"))));
}

TEST_F(ProgressFileTest, WhatCannotBeSyncedIsAnError) {
  if (!outcome_with_failing(SYS_getppid, EPERM, [] {})) GTEST_SKIP() << "system calls cannot be filtered here";
  put(kFirstLine + kShard);
  EXPECT_THAT(outcome_with_failing(SYS_fsync, EIO, [&] { ProgressFile(path_, kKey); }),
              Optional(AllOf(StartsWith("74 "), HasSubstr("fsync"))));
  EXPECT_EQ(text(), kFirstLine + kShard);
  EXPECT_FALSE(fs::exists(path_ + ".new"));
}

TEST_F(ProgressFileTest, OneThatCannotBeBegunLeavesNothing) {
  if (!outcome_with_failing(SYS_getppid, EPERM, [] {})) GTEST_SKIP() << "system calls cannot be filtered here";
  EXPECT_THAT(outcome_with_failing(SYS_fsync, EIO, [&] { ProgressFile(path_, kKey); }), Optional(StartsWith("74 ")));
  EXPECT_TRUE(fs::is_empty(dir_.path()));
}

}  // namespace

}  // namespace rankslice

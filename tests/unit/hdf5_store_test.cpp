#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <functional>

#include "rankslice/error.hpp"

#include "core/fingerprint.hpp"
#include "core/literals.hpp"
#include "hdf5_store_fixture.hpp"
#include "support/failing_syscall.hpp"

namespace rankslice::test {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

class Hdf5Store : public testing::Test {
 protected:
  TempDir folder_;
  std::string path_ = folder_.file("store.h5");
};

TEST_F(Hdf5Store, GivesBackWhatItWasGiven) {
  auto const written = make_store(path_, example_contents(folder_));
  auto const read = native_store().read(path_);
  EXPECT_EQ(describe(read), describe(written));
  EXPECT_EQ(read.file_size, slurp(path_).size());
}

TEST_F(Hdf5Store, GivesBackAnEmptyLayout) {
  auto const written = make_store(path_, with_tensors({}));
  EXPECT_EQ(describe(native_store().read(path_)), describe(written));
}

TEST_F(Hdf5Store, OrdersTensorsByFqnHoweverTheyCame) {
  auto contents = example_contents(folder_);
  std::ranges::reverse(contents.tensors);
  auto written = make_store(path_, contents);
  std::ranges::reverse(written.tensors);
  EXPECT_EQ(describe(native_store().read(path_)), describe(written));
}

TEST_F(Hdf5Store, HoldsThousandsOfTensors) {
  auto contents = with_tensors({});
  for (int i = 0; i < 3000; ++i) contents.tensors.push_back({fmt::format("tensor.{:04}", i), DType::F32, {3}, 0});
  auto const written = make_store(path_, contents);
  EXPECT_EQ(describe(native_store().read(path_)), describe(written));
}

TEST_F(Hdf5Store, ReadsBackThroughHdf5WhatWasWrittenAtItsOffsets) {
  auto const contents = with_tensors({{"a", DType::F32, {3}, 0}, {"b/c", DType::I16, {2, 2}, 0}});
  auto const layout = create_store(path_, contents);
  std::array<float, 3> const a{1.5F, -2.0F, 1e30F};
  std::array<std::int16_t, 4> const b{1, -2, 300, -32768};
  auto const fd = ::open(path_.c_str(), O_WRONLY);
  ASSERT_EQ(::pwrite(fd, a.data(), sizeof a, static_cast<off_t>(layout.offsets[0])), 12);
  ASSERT_EQ(::pwrite(fd, b.data(), sizeof b, static_cast<off_t>(layout.offsets[1])), 8);
  ::close(fd);
  complete_store(path_);

  auto const file = H5Fopen(path_.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
  std::array<float, 3> a_read{};
  std::array<std::int16_t, 4> b_read{};
  auto const a_set = H5Dopen2(file, "/state_dict/a", H5P_DEFAULT);
  auto const b_set = H5Dopen2(file, "/state_dict/b%2Fc", H5P_DEFAULT);
  EXPECT_GE(H5Dread(a_set, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, a_read.data()), 0);
  EXPECT_GE(H5Dread(b_set, H5T_NATIVE_SHORT, H5S_ALL, H5S_ALL, H5P_DEFAULT, b_read.data()), 0);
  H5Dclose(a_set);
  H5Dclose(b_set);
  H5Fclose(file);
  EXPECT_EQ(a_read, a);
  EXPECT_EQ(b_read, b);
}

TEST_F(Hdf5Store, PlacesLargeTensorsApartOnWholeMebibytes) {
  auto const contents =
      with_tensors({{"a", DType::U8, {100_KiB}, 0}, {"b", DType::BF16, {3, 1_MiB}, 0}, {"c", DType::F32, {20_KiB}, 0}});
  auto const layout = create_store(path_, contents);
  auto end = std::uint64_t{0};
  for (std::size_t i = 0; i < contents.tensors.size(); ++i) {
    EXPECT_EQ(layout.offsets[i] % 1_MiB, 0U) << contents.tensors[i].fqn;
    EXPECT_GE(layout.offsets[i], end);
    end = layout.offsets[i] + byte_size(contents.tensors[i].dtype, contents.tensors[i].shape);
  }
  EXPECT_GE(layout.file_size, end);
  EXPECT_EQ(layout.file_size, slurp(path_).size());
}

TEST_F(Hdf5Store, IsTheSameFileForTheSameContents) {
  make_store(path_, example_contents(folder_));
  make_store(folder_.file("again.h5"), example_contents(folder_));
  EXPECT_EQ(slurp(path_), slurp(folder_.file("again.h5")));
}

TEST_F(Hdf5Store, IsFoundAgainUnfinishedAndComplete) {
  auto const contents = example_contents(folder_);
  auto const made = create_store(path_, contents);
  for (auto const complete : {false, true}) {
    if (complete) complete_store(path_);
    auto const found = find_store(path_, contents);
    ASSERT_TRUE(found) << complete;
    EXPECT_EQ(found->offsets, made.offsets);
    EXPECT_EQ(found->file_size, slurp(path_).size());
  }
  complete_store(path_);
  EXPECT_EQ(describe(native_store().read(path_)), describe(make_store(folder_.file("another.h5"), contents)))
      << "completed once";
}

TEST_F(Hdf5Store, IsNotFoundWhereItIsOfOtherContents) {
  auto const made_of = [&](std::function<void(StoreContents&)> const& change) {
    auto contents = example_contents(folder_);
    change(contents);
    std::filesystem::remove(path_);
    (void)create_store(path_, contents);
    return find_store(path_, example_contents(folder_)).has_value();
  };
  EXPECT_TRUE(made_of([](StoreContents&) {}));
  EXPECT_FALSE(made_of([](StoreContents& contents) { contents.family = "another"; }));
  EXPECT_FALSE(made_of([](StoreContents& contents) { contents.tensors[0].fqn += "x"; }));
  EXPECT_FALSE(made_of([](StoreContents& contents) { contents.tensors.pop_back(); }));
  EXPECT_FALSE(made_of([](StoreContents& contents) { ++contents.source[0].values[1]; }));
  EXPECT_FALSE(made_of([](StoreContents& contents) { ++contents.stored[0].values[0]; }));
  EXPECT_FALSE(made_of([](StoreContents& contents) { contents.hf.index.push_back(std::byte{' '}); }));
  EXPECT_FALSE(made_of([](StoreContents& contents) { contents.hf.files[1].header[0] ^= std::byte{1}; }));
  EXPECT_FALSE(made_of([](StoreContents& contents) { contents.hf.side_files.pop_back(); }));
}

TEST_F(Hdf5Store, IsNotFoundWhereItIsDamaged) {
  auto const contents = example_contents(folder_);
  (void)create_store(path_, contents);
  auto const whole = slurp(path_);
  for (auto const* const text : {"another raw header", "[\"a\", \"b\"]", "layers.0.mask", "weight_map"}) {
    auto changed = whole;
    changed.at(changed.find(text)) ^= 1;
    spill(path_, changed);
    EXPECT_FALSE(find_store(path_, contents)) << text;
  }
  spill(path_, whole.substr(0, whole.size() - 1));
  EXPECT_FALSE(find_store(path_, contents)) << "cut short";
  spill(path_, "no store");
  EXPECT_FALSE(find_store(path_, contents));
}

TEST_F(Hdf5Store, HoldsSideFilesLargerThanItsCopyBuffer) {
  std::string large(9'000'001, '\0');
  for (std::size_t i = 0; i < large.size(); ++i) large[i] = static_cast<char>(i * i >> 7);
  auto contents = with_tensors({});
  contents.hf.side_files = {make_side_file(folder_, "merges.txt", large)};
  make_store(path_, contents);
  auto const side = native_store().read(path_).hf.side_files.at(0);
  EXPECT_EQ(side.path, path_);
  EXPECT_EQ(slurp(path_).substr(side.offset, side.size), large);
  EXPECT_EQ(side.checksum, xxh3_128(bytes_of(large)));
}

TEST_F(Hdf5Store, CopiesSideFilesOfAnotherStore) {
  make_store(path_, example_contents(folder_));
  auto const first = native_store().read(path_);
  auto contents = with_tensors({});
  contents.hf.side_files = first.hf.side_files;
  auto const copy = folder_.file("copy.h5");
  make_store(copy, contents);
  auto const side = native_store().read(copy).hf.side_files.at(2);
  EXPECT_EQ(slurp(copy).substr(side.offset, side.size), "[\"a\", \"b\"]");
}

TEST_F(Hdf5Store, RefusesASideFileThatChangedSinceItsChecksum) {
  auto contents = with_tensors({});
  contents.hf.side_files = {make_side_file(folder_, "a.txt", "changed")};
  contents.hf.side_files[0].checksum = xxh3_128(bytes_of("as it was"));
  try {
    (void)create_store(path_, contents);
    FAIL() << "expected an error";
  } catch (FormatError const& error) {
    EXPECT_THAT(error.what(), HasSubstr("side file a.txt at byte 0: expected checksum"));
  }
}

TEST_F(Hdf5Store, IsNotMadeOverAFileThatIsThere) {
  spill(path_, "precious");
  try {
    (void)create_store(path_, example_contents(folder_));
    FAIL() << "expected an error";
  } catch (IoError const& error) {
    EXPECT_EQ(error.code, ExitCode::cannot_create);
    EXPECT_EQ(error.file, path_);
    EXPECT_THAT(error.what(), HasSubstr(path_));
  }
  EXPECT_EQ(slurp(path_), "precious");
}

TEST_F(Hdf5Store, TakesItsWholeSpaceAtOnceOrSaysThatItCannot) {
  auto const outcome =
      outcome_with_failing(SYS_fallocate, ENOSPC, [&] { (void)create_store(path_, example_contents(folder_)); });
  if (!outcome) GTEST_SKIP() << "skipped: system calls cannot be made to fail here";
  EXPECT_THAT(*outcome, StartsWith("73 " + path_));
  EXPECT_THAT(*outcome, HasSubstr("No space left on device"));
}

TEST_F(Hdf5Store, ThatCannotBeSyncedIsAnError) {
  for (auto const& make : std::vector<std::function<void()>>{
           [&] { (void)create_store(path_, example_contents(folder_)); },
           [&] { complete_store(path_); },
       }) {
    auto const outcome = outcome_with_failing(SYS_fsync, EIO, make);
    if (!outcome) GTEST_SKIP() << "skipped: system calls cannot be made to fail here";
    EXPECT_EQ(*outcome, "74 " + path_ + ": fsync failed: Input/output error");
  }
}

/// Who marked it may have died before that was on the disk.
TEST_F(Hdf5Store, IsSyncedEvenIfItIsMarkedCompleteAlready) {
  (void)create_store(path_, example_contents(folder_));
  complete_store(path_);
  auto const outcome = outcome_with_failing(SYS_fsync, EIO, [&] { complete_store(path_); });
  if (!outcome) GTEST_SKIP() << "skipped: system calls cannot be made to fail here";
  EXPECT_EQ(*outcome, "74 " + path_ + ": fsync failed: Input/output error");
}

TEST_F(Hdf5Store, IsNotMarkedCompleteWhenTheDiskRefusesTheMark) {
  (void)create_store(path_, example_contents(folder_));
  auto const outcome = outcome_with_failing(SYS_pwrite64, ENOSPC, [&] { complete_store(path_); });
  if (!outcome) GTEST_SKIP() << "skipped: system calls cannot be made to fail here";
  EXPECT_THAT(*outcome, StartsWith("74 " + path_));
  EXPECT_THAT(*outcome, HasSubstr("No space left on device"));
  EXPECT_THROW((void)native_store().read(path_), FormatError);
}

}  // namespace
}  // namespace rankslice::test

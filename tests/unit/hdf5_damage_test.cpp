#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "rankslice/error.hpp"

#include "hdf5_store_fixture.hpp"

// HDF5 1.10 keeps the memory of files that it finds damaged.
extern "C" char const* __lsan_default_suppressions() { return "leak:libhdf5"; }

namespace rankslice::test {
namespace {

// About this many reads per sweep: enough to touch every structure of the file, few enough for every run.
constexpr std::size_t kReads = 1500;

// Inside the first object header, which follows the superblock of 48 bytes.
constexpr std::size_t kRootGroupAt = 69;

/// More names than fit in an object header, so that groups have heaps and B-trees as in stores of real size.
StoreContents contents_with_large_groups(TempDir const& folder) {
  auto contents = example_contents(folder);
  for (int i = 0; i < 12; ++i) contents.tensors.push_back({fmt::format("z.{:02}", i), DType::BF16, {2}, 0});
  return contents;
}

class Hdf5Damage : public testing::Test {
 protected:
  static void SetUpTestSuite() { disable_hdf5_exit_handler(); }

  Hdf5Damage() {
    make_store(path_, contents_with_large_groups(folder_));
    whole_ = slurp(path_);
    sound_ = describe(native_store().read(path_));
  }

  void overwrite(std::size_t at, std::string const& bytes) {
    std::fstream file(path_, std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(static_cast<std::streamoff>(at));
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }

  /// Reading a store with other bytes somewhere gives an error or the truth.
  void expect_error_or_truth(std::size_t at, std::string const& bytes) {
    overwrite(at, bytes);
    try {
      EXPECT_EQ(describe(native_store().read(path_)), sound_) << bytes.size() << " bytes at byte " << at;
      ++unharmed_;
    } catch (FormatError const&) {
      ++refused_;
    }
    overwrite(at, whole_.substr(at, bytes.size()));
  }

  TempDir folder_;
  std::string path_ = folder_.file("store.h5");
  std::string whole_, sound_;
  std::size_t refused_ = 0, unharmed_ = 0;
};

TEST_F(Hdf5Damage, OfOneByteIsAnErrorOrHarmless) {
  auto const step = 1 + whole_.size() / kReads;
  for (std::size_t at = 0; at < whole_.size(); at += step) {
    auto const flip = at % 3 == 0 ? 0xFFU : 1U << (at % 8);
    expect_error_or_truth(at, std::string(1, static_cast<char>(static_cast<unsigned char>(whole_[at]) ^ flip)));
  }
  EXPECT_GT(refused_, kReads / 2);
  EXPECT_GT(unharmed_, 0U);
}

TEST_F(Hdf5Damage, OfABlockOfZerosIsAnErrorOrHarmless) {
  constexpr std::size_t kBlock = 64;
  for (std::size_t at = 0; at + kBlock <= whole_.size(); at += kBlock) {
    expect_error_or_truth(at, std::string(kBlock, '\0'));
  }
  EXPECT_GT(refused_, 0U);
}

TEST(Hdf5Exit, IsSilentAfterARefusalInAProgramThatDisablesTheHandler) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // the child begins anew, before any use of HDF5
  disable_hdf5_exit_handler();
  TempDir const folder;
  auto const path = folder.file("store.h5");
  make_store(path, with_tensors({}));
  auto damaged = slurp(path);
  damaged[kRootGroupAt] = '!';
  spill(path, damaged);
  auto const read_and_exit = [&] {
    try {
      (void)native_store().read(path);
    } catch (FormatError const&) {
      std::exit(65);
    }
  };
  EXPECT_EXIT(read_and_exit(), testing::ExitedWithCode(65), testing::StrEq(""));
}

}  // namespace
}  // namespace rankslice::test

// What is larger than a window goes to the disk and comes back while the rest is made.

#include "slice_writer.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <functional>

#include "rankslice/error.hpp"

#include "core/literals.hpp"
#include "io/file.hpp"
#include "support/naive_digest.hpp"
#include "support/raw_checkpoint.hpp"
#include "support/raw_safetensors.hpp"
#include "support/temp_dir.hpp"

namespace rankslice {
namespace {

using test::Bytes;
using testing::HasSubstr;

constexpr std::uint64_t kExperts = 24, kRows = 1024, kColumns = 2047;
constexpr auto kExpert = kRows * kColumns;  // bytes of one, nearly 2 MiB
constexpr auto kDense = 40_MiB + 3;
constexpr auto kHeader = std::uint64_t{101};  // before the tensors

/// A dense tensor, and experts that the file has with exchanged axes; both of bytes.
Model model_of_bytes() {
  return {.tensors = {{.key = "dense", .dtype = DType::U8, .shape = {kDense}, .parameter = 0},
                      {.key = "experts",
                       .dtype = DType::U8,
                       .shape = {kExperts, kColumns, kRows},
                       .parameter = 1,
                       .experts = {0, kExperts},
                       .columns = {0, kColumns}}},
          .parameters = {{.fqn = "d", .hf_dtype = DType::U8, .dtype = DType::U8, .shape = {kDense}, .tensors = {0}},
                         {.fqn = "e",
                          .hf_dtype = DType::U8,
                          .dtype = DType::U8,
                          .shape = {kExperts, kRows, kColumns},
                          .layout = Layout::swapped,
                          .stacked_experts = true,
                          .tensors = {1}}}};
}

/// Gives each parameter whole, and the experts one by one, as a source that reads them does.
class Values final : public NativeSource {
 public:
  void for_each_box(PlannedSlice const& wanted, BoxStep const& use) override {
    auto const& slice = wanted.slice;
    if (wanted.parameter == 0) return use(slice, {.data = dense.data(), .slice = slice});
    for (auto i = slice.part.begin; i < slice.part.end; ++i) {
      before_expert(i);
      Slice const one{.part = {i, i + 1}, .rows = slice.rows};
      use(one, {.data = experts.data() + i * kExpert, .slice = one});
    }
  }

  std::function<void(std::uint64_t expert)> before_expert = [](std::uint64_t) {};
  Bytes const dense = test::random_bytes(kDense, 1);
  Bytes const experts = test::random_bytes(kExperts * kExpert, 2);
};

/// Bytes of a file in the page cache, in whole pages.
std::uint64_t cached_bytes(std::string const& path) {
  auto const size = std::filesystem::file_size(path);
  UniqueFd const fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  auto* const mapped = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd.get(), 0);
  std::vector<unsigned char> pages((size + 4095) / 4096);
  EXPECT_EQ(::mincore(mapped, size, pages.data()), 0);
  ::munmap(mapped, size);
  return 4096 * static_cast<std::uint64_t>(std::ranges::count_if(pages, [](auto page) { return (page & 1) != 0; }));
}

class Windows : public testing::Test {
 protected:
  Windows() {
    auto file = FileWriter::create(path_);
    file.allocate(kHeader + kDense + kExperts * kExpert);
    file.close();
  }
  void write(SliceWriter& writer) { writer.write(plan_, values_); }

  test::TempDir dir_;
  std::string const path_ = dir_.file("out");
  Model const model_ = model_of_bytes();
  Storage const target_{
      .form = Form::hf,
      .files = {{"out", path_, kHeader + kDense + kExperts* kExpert, 0}},
      .pieces = {
          {.parameter = 0, .tensor = 0, .slice = {{0, kDense}, {0, 1}}, .extent = {0, {kHeader, kHeader + kDense}}},
          {.parameter = 1,
           .tensor = 1,
           .slice = {{0, kExperts}, {0, kRows}},
           .extent = {0, {kHeader + kDense, kHeader + kDense + kExperts* kExpert}}}}};
  std::vector<PlannedSlice> const plan_{{0, {{0, kDense}, {0, 1}}}, {1, {{0, kExperts}, {0, kRows}}}};
  Values values_;
  std::uint64_t done_ = 0;
  BlockDone const count_ = [this](std::uint64_t bytes) { done_ += bytes; };
};

TEST_F(Windows, HoldWhatWasGivenAndCountEveryByteOnceEachWay) {
  SliceWriter writer(model_, target_, count_);
  write(writer);
  auto const written = writer.sync();
  writer.read_back();
  EXPECT_EQ(done_, 2 * (kDense + kExperts * kExpert));
  auto const found = test::file_bytes(path_);
  auto const experts = test::swap_axes(values_.experts, {kExperts, kRows, kColumns}, 1);
  auto const at = found.begin() + kHeader;
  EXPECT_TRUE(std::equal(values_.dense.begin(), values_.dense.end(), at));
  EXPECT_TRUE(std::equal(experts.begin(), experts.end(), at + static_cast<std::ptrdiff_t>(kDense)));
  EXPECT_TRUE(std::ranges::equal(written.source.of(0), test::naive_digest(1, {kDense}, values_.dense, {0, kDense})));
}

TEST_F(Windows, AreReadBackWhileTheRestIsWritten) {
  SliceWriter writer(model_, target_, count_);
  write(writer);
  EXPECT_GE(done_, kDense + kExperts * kExpert + 8_MiB) << "of 88 MiB";
}

TEST_F(Windows, TellOfAByteThatChangedOnItsWay) {
  values_.before_expert = [&](std::uint64_t expert) {
    if (expert == 4) test::flip_byte(path_, kHeader + kDense + 3 * kExpert);  // it is in the window being filled
  };
  SliceWriter writer(model_, target_, count_);
  write(writer);
  (void)writer.sync();
  try {
    writer.read_back();
    FAIL();
  } catch (VerifyError const& error) {
    EXPECT_EQ(error.tensor, "experts");
    EXPECT_THAT(error.what(), HasSubstr("out: experts reads back differently"));
  }
}

TEST_F(Windows, LeaveThePageCacheWhereThatIsAskedFor) {
  for (auto const cache : {PageCache::keep, PageCache::drop}) {
    SliceWriter writer(model_, target_, count_, cache);
    write(writer);
    (void)writer.sync();
    writer.read_back();
    auto const cached = cached_bytes(path_);
    if (cache == PageCache::drop) {
      EXPECT_LE(cached, 1_MiB);
    } else if (cached < kDense + kExperts * kExpert) {
      GTEST_SKIP() << "the page cache does not keep files here";
    }
  }
}

}  // namespace
}  // namespace rankslice

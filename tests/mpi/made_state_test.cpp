// State dicts that were not loaded: made of the ranks' own tensors, through every output and back.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cstring>
#include <functional>

#include "rankslice/load.hpp"
#include "rankslice/make_state_dict.hpp"
#include "rankslice/store.hpp"
#include "rankslice/to_hf.hpp"
#include "rankslice/verify.hpp"

#include "support/caller_tensors.hpp"
#include "support/job_fixture.hpp"
#include "support/raw_checkpoint.hpp"

namespace rankslice::test {
namespace {

using testing::HasSubstr;

/// BF16 and F32 as F32, doubled, element by element.
std::map<std::string, Bytes> expected_tensors(std::string const& folder) {
  std::map<std::string, Bytes> expected;
  for (auto const& [name, tensor] : read_raw_tensors(folder)) {
    auto const unit = tensor.dtype == "BF16" ? 2U : 4U;
    auto& bytes = expected[name];
    for (std::size_t i = 0; i < tensor.bytes.size(); i += unit) {
      std::uint32_t bits = 0;
      std::memcpy(&bits, tensor.bytes.data() + i, unit);
      auto const value = 2 * std::bit_cast<float>(unit == 2 ? bits << 16 : bits);
      auto const raw = std::bit_cast<std::array<std::byte, 4>>(value);
      bytes.insert(bytes.end(), raw.begin(), raw.end());
    }
  }
  return expected;
}

class MadeState : public JobTest {
 protected:
  static constexpr auto kFamily = "qwen3_5_moe";

  static StateDict make(std::map<std::string, LocalTensor> const& tensors,
                        StateOptions const& options = {.family = kFamily}) {
    auto const mesh = make_mesh(world().size());
    return make_state_dict(tensors, mesh, mesh.coordinate(world().rank()), options);
  }
  static std::map<std::string, LocalTensor> trained() {
    return doubled_as_f32(load(open_checkpoint(checkpoint(), world()), make_mesh(world().size()), world()));
  }
  static void expect_exported(std::string const& folder) {
    if (world().rank() != 0) return;
    auto const expected = expected_tensors(checkpoint());
    auto const found = read_raw_tensors(folder);
    ASSERT_EQ(found.size(), expected.size());
    for (auto const& [name, bytes] : expected) {
      ASSERT_TRUE(found.contains(name)) << name;
      EXPECT_EQ(found.at(name).dtype, "F32") << name;
      EXPECT_TRUE(found.at(name).bytes == bytes) << name;
    }
  }
  static void expect_equal_folders(std::string const& expected, std::string const& found) {
    if (world().rank() != 0) return;
    EXPECT_TRUE(files_below(expected) == files_below(found)) << found;
  }
};

TEST_F(MadeState, IsExportedAsHeldUnderFreshHeadersWithSideFiles) {
  auto const side_files = side_files_in(checkpoint());
  auto const state = make(trained(), {.family = kFamily, .side_files = side_files, .max_file_bytes = 1'000'000});
  auto const report = to_hf(state, path("out"), world());
  EXPECT_EQ(report.headers, HeaderOrigin::state);
  EXPECT_GT(report.files, 3U);
  expect_exported(path("out"));
  for (auto const& side : side_files) EXPECT_EQ(file_bytes(path("out/" + side.name)), file_bytes(side.path));
  auto const again = load(open_checkpoint(path("out"), world()), make_mesh(world().size()), world());
  EXPECT_TRUE(verify(again, world()).ok());
}

TEST_F(MadeState, GoesThroughStoresAndShards) {
  auto const state = make(trained());
  to_hf(state, path("direct"), world());
  save_store(state, path("state.h5"), world());
  save_shards(state, path("shards"), world());
  auto const store = open_checkpoint(path("state.h5"), world(), {.store = &native_store()});
  EXPECT_EQ(store->hf.headers, HeaderOrigin::state);
  to_hf(*store, path("from_store"), world());
  expect_equal_folders(path("direct"), path("from_store"));
  auto const shards = open_checkpoint(path("shards"), world());
  EXPECT_EQ(shards->hf.headers, HeaderOrigin::state);
  to_hf(*shards, path("from_shards"), world());
  expect_equal_folders(path("direct"), path("from_shards"));
}

TEST_F(MadeState, OfPartOfAModelOpensAgainAlthoughConfigSpeaksOfMore) {
  auto tensors = trained();
  std::erase_if(tensors, [](auto const& tensor) { return tensor.first.find(".layers.0.") == std::string::npos; });
  auto const side_files = side_files_in(checkpoint());
  EXPECT_THROW((void)make(tensors, {.family = kFamily, .side_files = side_files}), FormatError);
  auto const state = make(tensors, {.family = kFamily, .side_files = side_files, .partial = true});
  save_store(state, path("stage.h5"), world());
  save_shards(state, path("stage"), world());
  auto const store = open_checkpoint(path("stage.h5"), world(), {.store = &native_store()});
  EXPECT_EQ(store->model.parameters.size(), tensors.size());
  EXPECT_EQ(open_checkpoint(path("stage"), world())->model.parameters.size(), tensors.size());
}

TEST_F(MadeState, OfOtherTensorsOnOneRankIsRefusedByAll) {
  if (world().size() == 1) GTEST_SKIP() << "takes two ranks";
  auto tensors = trained();
  if (world().rank() == 1) tensors.erase("lm_head.weight");
  auto const state = make(tensors);
  for (auto const& save : std::initializer_list<std::function<void()>>{
           [&] { to_hf(state, path("never"), world()); }, [&] { save_shards(state, path("never"), world()); },
           [&] { save_store(state, path("never"), world()); }}) {
    try {
      save();
      ADD_FAILURE() << "accepted";
    } catch (Error const& error) {
      EXPECT_EQ(error.rank, 1);
      EXPECT_THAT(error.what(), HasSubstr("other tensors"));
    }
  }
}

}  // namespace
}  // namespace rankslice::test

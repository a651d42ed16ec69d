// Exports whose tensors are not the source's own: from states, checkpoints, stores and shards, by any number of ranks.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "rankslice/load.hpp"
#include "rankslice/store.hpp"
#include "rankslice/to_hf.hpp"
#include "rankslice/verify.hpp"

#include "support/job_fixture.hpp"
#include "support/raw_checkpoint.hpp"

namespace rankslice::test {
namespace {

using testing::HasSubstr;

ExportOptions const kUpstream{.gdn_dtype = GdnDtype::upstream, .call = {}};

/// BF16 as F32.
Bytes widened(Bytes const& bytes) {
  Bytes wide(2 * bytes.size());
  for (std::size_t i = 0; i < bytes.size() / 2; ++i) std::memcpy(wide.data() + 4 * i + 2, bytes.data() + 2 * i, 2);
  return wide;
}

class ConvertedExport : public JobTest {
 protected:
  static StateDict loaded() { return load(open_checkpoint(checkpoint(), world()), make_mesh(world().size()), world()); }
  /// Rules 55, 57: `dt_bias` is F32, all else as it was.
  static void expect_upstream(std::string const& folder, KeySelection const& taken = {}) {
    if (world().rank() != 0) return;
    auto found = read_raw_tensors(folder);
    std::size_t converted = 0;
    for (auto const& [name, tensor] : read_raw_tensors(checkpoint())) {
      if (taken && !taken(name)) continue;
      auto const widens = name.ends_with(".dt_bias");
      converted += widens ? 1 : 0;
      ASSERT_TRUE(found.contains(name)) << name;
      EXPECT_EQ(found[name].dtype, widens ? "F32" : tensor.dtype) << name;
      EXPECT_EQ(found[name].shape, tensor.shape) << name;
      EXPECT_TRUE(found[name].bytes == (widens ? widened(tensor.bytes) : tensor.bytes)) << name;
      found.erase(name);
    }
    EXPECT_TRUE(found.empty());
    EXPECT_GT(converted, 0U);
    EXPECT_EQ(file_bytes(folder + "/config.json"), file_bytes(checkpoint() + "/config.json"));
  }
  static void expect_equal_folders(std::string const& expected, std::string const& found) {
    if (world().rank() != 0) return;
    EXPECT_TRUE(files_below(expected) == files_below(found)) << found;
  }
};

// Rules 55, 57
TEST_F(ConvertedExport, AsUpstreamIsTheSameOfStateCheckpointStoreAndShards) {
  auto const state = loaded();
  EXPECT_EQ(to_hf(state, path("from_state"), world(), kUpstream).headers, HeaderOrigin::converted);
  expect_upstream(path("from_state"));

  to_hf(*state.source, path("from_checkpoint"), world(), kUpstream);
  expect_equal_folders(path("from_state"), path("from_checkpoint"));
  save_store(state, path("state.h5"), world());
  auto const store = open_checkpoint(path("state.h5"), world(), {.store = &native_store()});
  to_hf(*store, path("from_store"), world(), kUpstream);
  expect_equal_folders(path("from_state"), path("from_store"));
  save_shards(state, path("shards"), world());
  to_hf(*open_checkpoint(path("shards"), world()), path("from_shards"), world(), kUpstream);
  expect_equal_folders(path("from_state"), path("from_shards"));

  EXPECT_TRUE(verify(*open_checkpoint(path("from_state"), world()), world()).ok());
}

// Rule 25: keys are those of the export.
TEST_F(ConvertedExport, TakesSelections) {
  auto const taken = key_selection(".*linear_attn", ".*in_proj");
  ExportOptions options = kUpstream;
  options.keys = taken;
  EXPECT_EQ(to_hf(loaded(), path("selected"), world(), options).headers, HeaderOrigin::converted);
  expect_upstream(path("selected"), taken);
}

TEST_F(ConvertedExport, InTheLayoutOfTheSourceHasTheDtypesOfTheSource) {
  auto const state = loaded();
  EXPECT_EQ(to_hf(state, path("as_source"), world(), {.layout = ExportLayout::source, .call = {}}).headers,
            HeaderOrigin::source);
  expect_equal_folders(checkpoint(), path("as_source"));
  EXPECT_THROW(to_hf(state, path("never"), world(),
                     {.layout = ExportLayout::source, .gdn_dtype = GdnDtype::upstream, .call = {}}),
               UsageError);
}

}  // namespace
}  // namespace rankslice::test

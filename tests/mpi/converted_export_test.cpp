// Exports whose tensors are not the source's own: from states, checkpoints, stores and shards, by any number of ranks.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>

#include "rankslice/load.hpp"
#include "rankslice/manifest.hpp"
#include "rankslice/store.hpp"
#include "rankslice/to_hf.hpp"
#include "rankslice/verify.hpp"

#include "io/file.hpp"
#include "support/fp8_checkpoint.hpp"
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

float from_e4m3(std::byte code) {
  auto const bits = std::to_integer<int>(code);
  auto const exponent = bits >> 3 & 15, mantissa = bits & 7;
  auto const magnitude = exponent == 15 && mantissa == 7 ? std::numeric_limits<float>::quiet_NaN()
                         : exponent == 0                 ? std::ldexp(static_cast<float>(mantissa), -9)
                                                         : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return std::copysign(magnitude, (bits & 0x80) != 0 ? -1.0F : 1.0F);
}

float from_bf16(std::byte const* bytes) {
  std::uint16_t half = 0;
  std::memcpy(&half, bytes, 2);
  return std::bit_cast<float>(std::uint32_t{half} << 16);
}

/// To nearest, ties to even; of NaNs nothing is said.
std::uint16_t to_bf16(float value) {
  auto const bits = std::bit_cast<std::uint32_t>(value);
  auto const rest = bits & 0xFFFF, kept = bits >> 16;
  return static_cast<std::uint16_t>(kept + (rest > 0x8000 || (rest == 0x8000 && (kept & 1) != 0) ? 1 : 0));
}

/// Whether BF16 values are codes times their one scale, in F32 (rule 58).
void expect_dequantised(std::byte const* found, Bytes const& codes, Bytes const& scale, std::string const& name) {
  std::size_t different = 0;
  float factor = 0;
  std::memcpy(&factor, scale.data(), sizeof factor);
  for (std::size_t i = 0; i < codes.size(); ++i) {
    auto const value = from_e4m3(codes[i]) * factor;
    std::uint16_t bits = 0;
    std::memcpy(&bits, found + 2 * i, 2);
    different += std::isnan(value) ? !std::isnan(from_bf16(found + 2 * i)) : bits != to_bf16(value);
  }
  EXPECT_EQ(different, 0U) << name;
}

class ConvertedExport : public JobTest {
 protected:
  static StateDict loaded() { return load(open_checkpoint(checkpoint(), world()), make_mesh(world().size()), world()); }
  /// The path of a checkpoint in FP8, the same for all ranks.
  static std::string fp8() {
    if (world().rank() == 0 && !std::filesystem::exists(path("fp8"))) write_fp8_checkpoint(path("fp8"));
    on_every_rank(world(), [] {});
    return path("fp8");
  }
  static StateDict loaded_fp8() {
    auto const ep_shard = world().size() % 2 == 0 ? 2 : 1;
    return load(open_checkpoint(fp8(), world()), make_mesh(world().size(), world().size() / ep_shard, ep_shard),
                world());
  }
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
  /// The decoder's experts in grouped tensors, each as it was: gate above up, and no axes exchanged (rules 3, 4).
  static void expect_fp8_dequantised(std::string const& folder) {
    if (world().rank() != 0) return;
    auto const source = read_raw_tensors(path("fp8"));
    auto const found = read_raw_tensors(folder);
    std::map<std::string, std::uint64_t> filled;  // bytes of each tensor that were compared
    for (auto const& [name, tensor] : source) {
      if (name.ends_with("_scale_inv")) continue;
      auto key = name;
      auto const experts = name.find(".mlp.experts.");
      if (!name.starts_with("mtp.") && experts != std::string::npos) {  // gate comes before up, and X has one digit
        key.erase(experts + std::strlen(".mlp.experts."));
        key += name.ends_with("down_proj.weight") ? "down_proj" : "gate_up_proj";
      }
      ASSERT_TRUE(found.contains(key)) << key;
      auto const& as = found.at(key);
      auto& at = filled[key];
      auto const coded = tensor.dtype == "F8_E4M3";
      auto const bytes = tensor.bytes.size() * (coded ? 2 : 1);
      ASSERT_EQ(as.dtype, coded ? "BF16" : tensor.dtype) << key;
      ASSERT_LE(at + bytes, as.bytes.size()) << key;
      if (coded) {
        expect_dequantised(as.bytes.data() + at, tensor.bytes, source.at(name + "_scale_inv").bytes, name);
      } else {
        EXPECT_TRUE(as.bytes == tensor.bytes) << name;
      }
      at += bytes;
    }
    EXPECT_EQ(filled.size(), found.size());
    for (auto const& [key, bytes] : filled) EXPECT_EQ(bytes, found.at(key).bytes.size()) << key;
    EXPECT_EQ(found.at("model.language_model.layers.0.mlp.experts.gate_up_proj").shape, (Shape{4, 16, 16}));
    EXPECT_EQ(found.at("model.language_model.layers.0.mlp.experts.down_proj").shape, (Shape{4, 16, 8}));
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

// Rules 14, 45, 50, 58
TEST_F(ConvertedExport, OfQuantisedWeightsIsTheSameOfStateCheckpointStoreAndShards) {
  auto const state = loaded_fp8();
  EXPECT_EQ(to_hf(state, path("fp8_from_state"), world()).headers, HeaderOrigin::converted);
  expect_fp8_dequantised(path("fp8_from_state"));
  to_hf(*state.source, path("fp8_from_checkpoint"), world());
  expect_equal_folders(path("fp8_from_state"), path("fp8_from_checkpoint"));
  save_store(state, path("fp8_state.h5"), world());
  to_hf(*open_checkpoint(path("fp8_state.h5"), world(), {.store = &native_store()}), path("fp8_from_store"), world());
  expect_equal_folders(path("fp8_from_state"), path("fp8_from_store"));
  save_shards(state, path("fp8_shards"), world());
  to_hf(*open_checkpoint(path("fp8_shards"), world()), path("fp8_from_shards"), world());
  expect_equal_folders(path("fp8_from_state"), path("fp8_from_shards"));

  auto const again = open_checkpoint(path("fp8_from_state"), world());
  EXPECT_TRUE(std::ranges::none_of(again->model.parameters,
                                   [](Parameter const& parameter) { return parameter.hf_dtype == DType::F8_E4M3; }));
  EXPECT_TRUE(verify(*again, world()).ok());
}

TEST_F(ConvertedExport, InTheLayoutOfTheSourceCodesAndScalesComeBack) {
  auto const state = loaded_fp8();
  ExportOptions options{.layout = ExportLayout::source, .call = {}};
  EXPECT_EQ(to_hf(state, path("codes_from_state"), world(), options).headers, HeaderOrigin::source);
  expect_equal_folders(fp8(), path("codes_from_state"));
  to_hf(*state.source, path("codes_from_checkpoint"), world(), options);
  expect_equal_folders(fp8(), path("codes_from_checkpoint"));

  save_store(state, path("codes_state.h5"), world());
  auto const store = open_checkpoint(path("codes_state.h5"), world(), {.store = &native_store()});
  EXPECT_THROW(to_hf(*store, path("never"), world(), options), UsageError);
  options.source = state.source;
  to_hf(*store, path("codes_from_store"), world(), options);
  expect_equal_folders(fp8(), path("codes_from_store"));
  options.source = open_checkpoint(checkpoint(), world());
  EXPECT_THROW(to_hf(*store, path("never"), world(), options), IoError);
}

TEST_F(ConvertedExport, InTheLayoutOfTheSourceAChangedValueIsRefusedByName) {
  auto state = loaded_fp8();
  auto const fqn = "mtp.layers.0.mlp.experts.down_projs";
  auto const& tensor = state.tensors.at(fqn);
  if (world().rank() == 0) tensor.data.span().front() ^= std::byte{1};
  try {
    to_hf(state, path("never"), world(), {.layout = ExportLayout::source, .call = {}});
    FAIL() << "a value was changed";
  } catch (VerifyError const& error) {
    EXPECT_THAT(error.what(), HasSubstr("mtp.layers.0.mlp.experts.0.down_proj.weight"));
    EXPECT_THAT(error.what(), HasSubstr("cannot go back to F8_E4M3"));
  }
  EXPECT_FALSE(std::filesystem::exists(path("never")));
}

/// Copies the originals with another lowest bit of a scale, which no value in BF16 shows. Returns its key.
std::string copy_with_another_scale(std::string const& from, std::string const& to) {
  std::filesystem::copy(from, to);
  auto const tensors = read_raw_tensors(to);
  auto const is_scale = [](auto const& item) { return item.first.ends_with("down_proj.weight_scale_inv"); };
  auto const& [key, scale] = *std::ranges::find_if(tensors, is_scale);
  auto const low = scale.bytes.front() ^ std::byte{1};
  auto file = FileWriter::open(scale.file);
  file.write({&low, 1}, scale.offset);
  file.close();
  return key;
}

TEST_F(ConvertedExport, InTheLayoutOfTheSourceOriginalsAreThoseThatWereLoaded) {
  auto const state = loaded_fp8();
  auto const original = fp8();
  std::string changed;  // on rank 0
  on_every_rank(world(), [&] {
    if (world().rank() == 0) changed = copy_with_another_scale(original, path("other_scale"));
  });
  ExportOptions options{.layout = ExportLayout::source, .call = {}};
  options.source = open_checkpoint(path("other_scale"), world());
  save_store(state, path("true_scale.h5"), world());
  auto const store = open_checkpoint(path("true_scale.h5"), world(), {.store = &native_store()});
  try {
    to_hf(state, path("never"), world(), options);
    FAIL() << "other scales of a state";
  } catch (VerifyError const& error) {
    EXPECT_THAT(error.what(), HasSubstr(changed));
  }
  EXPECT_THROW(to_hf(*store, path("never"), world(), options), VerifyError);
  EXPECT_FALSE(std::filesystem::exists(path("never")));
}

// Of a store without codes nobody else knows them.
TEST_F(ConvertedExport, InTheLayoutOfTheSourceOriginalsAreThoseOfTheirManifest) {
  auto const original = fp8();
  auto const from = open_checkpoint(original, world());
  write_manifest(*from, digest(*from, world()), path("codes.json"), world());
  save_store(load(from, make_mesh(world().size()), world(), {.verify = VerifyLevel::off}), path("no_codes.h5"),
             world());
  std::string changed;  // on rank 0
  on_every_rank(world(), [&] {
    if (world().rank() == 0) changed = copy_with_another_scale(original, path("changed_scale"));
  });
  auto const store = open_checkpoint(path("no_codes.h5"), world(), {.store = &native_store()});
  ExportOptions options{.layout = ExportLayout::source, .call = {}};
  options.source = open_checkpoint(original, world(), {.manifest = path("codes.json")});
  to_hf(*store, path("as_recorded"), world(), options);
  expect_equal_folders(original, path("as_recorded"));

  options.source = open_checkpoint(path("changed_scale"), world(), {.manifest = path("codes.json")});
  try {
    to_hf(*store, path("never"), world(), options);
    FAIL() << "copied what the manifest does not have";
  } catch (VerifyError const& error) {
    EXPECT_THAT(error.what(), HasSubstr(changed + ": manifest of " + path("changed_scale") + " digest"));
  }
  EXPECT_FALSE(std::filesystem::exists(path("never")));
  to_hf(*store, path("unproved"), world(), options, VerifyLevel::off);
}

TEST_F(ConvertedExport, InTheLayoutOfTheSourceOriginalsAreReadTwiceOfAState) {
  auto const state = loaded_fp8();
  auto const report = to_hf(state, path("counted"), world(), {.layout = ExportLayout::source, .call = {}});
  std::vector<std::uint64_t> read{report.bytes_read};
  world().all_reduce(read, Reduce::sum);
  std::uint64_t codes = 0, scales = 0;
  for (auto const& tensor : state.source->model.tensors) {
    if (tensor.is_scales) scales += byte_size(tensor.dtype, tensor.shape);
    if (tensor.scales) codes += byte_size(tensor.dtype, tensor.shape);
  }
  EXPECT_GE(read.front(), 2 * (codes + scales));
  EXPECT_LE(read.front(), 2 * codes + scales * (1 + static_cast<std::uint64_t>(world().size())));
  EXPECT_EQ(to_hf(loaded(), path("uncounted"), world()).bytes_read, 0U);
}

// Rule 25: keys are those of the export.
TEST_F(ConvertedExport, TakesSelections) {
  auto const taken = key_selection(".*linear_attn", ".*in_proj");
  ExportOptions options = kUpstream;
  options.keys = taken;
  EXPECT_EQ(to_hf(loaded(), path("selected"), world(), options).headers, HeaderOrigin::converted);
  expect_upstream(path("selected"), taken);
}

/// Stores that have lost the digest of one block scale.
class WithoutOneScale final : public StoreFormat {
 public:
  [[nodiscard]] StoreContents read(std::string const& path) const override {
    auto contents = native_store().read(path);
    std::erase_if(contents.source, [](auto const& digest) { return digest.hf_key == kLost; });
    return contents;
  }
  [[nodiscard]] bool recognises(std::string const& path) const override { return native_store().recognises(path); }
  static constexpr auto kLost = "mtp.layers.0.mlp.experts.0.down_proj.weight_scale_inv";
};

TEST_F(ConvertedExport, AStoreHasTheDigestsOfAllCodesOrOfNone) {
  save_store(loaded_fp8(), path("codes.h5"), world());
  WithoutOneScale const format;
  try {
    (void)open_checkpoint(path("codes.h5"), world(), {.store = &format});
    FAIL() << "a digest is missing";
  } catch (FormatError const& error) {
    EXPECT_EQ(error.tensor, WithoutOneScale::kLost);
    EXPECT_THAT(error.what(), HasSubstr("no digest is recorded"));
  }
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

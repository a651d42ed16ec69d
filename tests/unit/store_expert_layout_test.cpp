#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <filesystem>
#include <string>

#include "rankslice/load.hpp"
#include "rankslice/store.hpp"
#include "rankslice/to_hf.hpp"
#include "rankslice/verify.hpp"

#include "support/model_catalog.hpp"
#include "support/raw_checkpoint.hpp"
#include "support/raw_safetensors.hpp"
#include "support/refusal.hpp"
#include "support/temp_dir.hpp"

namespace rankslice {
namespace {

using test::Bytes;
using testing::HasSubstr;

constexpr auto kGateUp = "model.language_model.layers.1.mlp.experts.gate_up_proj";
constexpr auto kDown = "model.language_model.layers.1.mlp.experts.down_proj";
constexpr auto kGateUpFqn = "model.language_model.layers.1.mlp.experts.gate_and_up_projs";
constexpr auto kDownFqn = "model.language_model.layers.1.mlp.experts.down_projs";

/// A Qwen3-VL-MoE of which one of the two expert tensors is square.
struct SquareCase {
  std::string name;
  std::uint64_t hidden, intermediate;
  ExpertLayout layout;
};

class SquareExperts : public testing::TestWithParam<SquareCase> {
 protected:
  SquareExperts() {
    auto shape = test::tiny_qwen_vl();
    shape.hidden = GetParam().hidden;
    shape.intermediate = GetParam().intermediate;
    shape.layout = GetParam().layout;
    std::filesystem::create_directory(folder());
    write_weights(test::make_vl_catalog(shape));
    nlohmann::json const config{{"model_type", "qwen3_vl_moe"},
                                {"text_config",
                                 {{"num_experts", shape.experts},
                                  {"hidden_size", shape.hidden},
                                  {"moe_intermediate_size", shape.intermediate},
                                  {"num_hidden_layers", shape.layers}}}};
    test::write_file(folder() + "/config.json", test::bytes_of(config.dump()));
  }

  void write_weights(TensorCatalog const& catalog) const {
    nlohmann::ordered_json header;
    for (auto const& tensor : catalog.tensors) {
      auto const& bytes = tensor.extent.bytes;
      header[tensor.name] = {
          {"dtype", name(tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {bytes.begin, bytes.end}}};
    }
    auto file = test::raw_header(header.dump());
    auto const values = test::random_bytes(catalog.files[0].size, 1);
    file.insert(file.end(), values.begin(), values.end());
    test::write_file(folder() + "/model.safetensors", file);
  }

  [[nodiscard]] std::string folder() const { return dir_.file("hf"); }
  [[nodiscard]] std::string path(std::string const& name) const { return dir_.file(name); }

  [[nodiscard]] StateDict loaded() const {
    auto const source = open_checkpoint(folder(), {.expert_layout = GetParam().layout});
    return load(source, make_mesh(1), {});
  }

  /// The same bytes as in the folder that was loaded.
  void expect_source_in(std::string const& exported) const {
    for (auto const* file : {"model.safetensors", "config.json"}) {
      EXPECT_TRUE(test::file_bytes(exported + "/" + file) == test::file_bytes(folder() + "/" + file)) << file;
    }
  }

  test::TempDir dir_;
  std::unique_ptr<Communicator> world_ = make_solo_communicator();
};

TEST_P(SquareExperts, Rule61_AreOpenedWithTheFlagOnly) {
  auto const refused = test::refusal_of([&] { (void)open_checkpoint(folder()); });
  EXPECT_EQ(refused.code, ExitCode::usage);
  EXPECT_THAT(refused.message, HasSubstr("--expert-layout hub|transformers"));
  auto const other = GetParam().layout == ExpertLayout::hub ? ExpertLayout::transformers : ExpertLayout::hub;
  auto const contradicted = test::refusal_of([&] { (void)open_checkpoint(folder(), {.expert_layout = other}); });
  EXPECT_EQ(contradicted.code, ExitCode::bad_data);
}

TEST_P(SquareExperts, Rule61_AreLoadedAsTheFlagSays) {
  auto const raw = test::read_raw_tensors(folder());
  auto const state = loaded();
  for (auto const& [key, fqn] : {std::pair{kGateUp, kGateUpFqn}, {kDown, kDownFqn}}) {
    auto const& tensor = raw.at(key);
    auto const as_hub = GetParam().layout == ExpertLayout::hub;
    auto const expected = as_hub ? tensor.bytes : test::swap_axes(tensor.bytes, tensor.shape, 2);
    EXPECT_TRUE(std::ranges::equal(state.tensors.at(fqn).data.span(), expected)) << key;
  }
}

TEST_P(SquareExperts, Rule61_ComeBackFromAStoreWithoutTheFlag) {
  save_store(loaded(), path("store.h5"), *world_);
  auto const store = open_checkpoint(path("store.h5"), {.store = &native_store()});
  to_hf(*store, path("back"), *world_);
  expect_source_in(path("back"));
  // … and the flag may be given all the same, if it is the right one.
  auto const layout = GetParam().layout;
  EXPECT_EQ(open_checkpoint(path("store.h5"), {.store = &native_store(), .expert_layout = layout})->fingerprint,
            store->fingerprint);
  auto const other = layout == ExpertLayout::hub ? ExpertLayout::transformers : ExpertLayout::hub;
  auto const refused = test::refusal_of(
      [&] { (void)open_checkpoint(path("store.h5"), {.store = &native_store(), .expert_layout = other}); });
  EXPECT_EQ(refused.code, ExitCode::bad_data);
}

TEST_P(SquareExperts, Rule61_ComeBackFromShardsWithoutTheFlag) {
  save_shards(loaded(), path("shards"), *world_);
  to_hf(*open_checkpoint(path("shards")), path("back"), *world_);
  expect_source_in(path("back"));
}

TEST_P(SquareExperts, Rule61_ComeBackFromShardsWithoutTheirSource) {
  auto const raw = test::read_raw_tensors(folder());
  save_shards(loaded(), path("shards"), *world_);
  std::filesystem::remove_all(folder());
  to_hf(*open_checkpoint(path("shards")), path("back"), *world_);
  auto const back = test::read_raw_tensors(path("back"));
  ASSERT_EQ(back.size(), raw.size());
  for (auto const& [key, tensor] : raw) EXPECT_TRUE(back.at(key).bytes == tensor.bytes) << key;
}

INSTANTIATE_TEST_SUITE_P(StoreExpertLayout, SquareExperts,
                         testing::Values(SquareCase{"TwoIIsHAsOnTheHub", 16, 8, ExpertLayout::hub},
                                         SquareCase{"TwoIIsHByTransformers", 16, 8, ExpertLayout::transformers},
                                         SquareCase{"IIsHAsOnTheHub", 8, 8, ExpertLayout::hub},
                                         SquareCase{"IIsHByTransformers", 8, 8, ExpertLayout::transformers}),
                         [](auto const& param) { return param.param.name; });

}  // namespace
}  // namespace rankslice

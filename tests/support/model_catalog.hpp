#pragma once

#include <cstdint>
#include <string>

#include "rankslice/tensor_catalog.hpp"

#include "model/fresh_model.hpp"

namespace rankslice::test {

/// The sizes of a Qwen3.5-MoE model; those of the 35B by default.
struct Qwen35Shape {
  std::uint64_t hidden = 2048;
  std::uint64_t intermediate = 512;
  std::uint64_t experts = 256;
  std::uint64_t layers = 40;
  std::uint64_t mtp_layers = 1;  ///< 0: without any MTP tensor; more than 1 is not known on the Hub.
  std::uint64_t vocab = 248320;
  std::uint64_t shared_intermediate = 512;
  std::uint64_t heads = 16;
  std::uint64_t kv_heads = 2;
  std::uint64_t head_dim = 256;
  std::uint64_t gdn_key_heads = 16;
  std::uint64_t gdn_value_heads = 32;
  std::uint64_t gdn_head_dim = 128;
  std::uint64_t vision_depth = 27;  ///< 0: without any vision tensor.
  std::uint64_t vision_hidden = 1152;
  std::uint64_t vision_intermediate = 4304;
  std::uint64_t vision_positions = 2304;
  ExpertForm experts_form = ExpertForm::grouped;
  ExpertForm mtp_form = ExpertForm::grouped;
};

/// The sizes of a Qwen3-VL-MoE model; those of the 30B by default.
struct QwenVlShape {
  std::uint64_t hidden = 2048;
  std::uint64_t intermediate = 768;
  std::uint64_t experts = 128;
  std::uint64_t layers = 48;
  std::uint64_t vocab = 151936;
  std::uint64_t heads = 32;
  std::uint64_t kv_heads = 4;
  std::uint64_t head_dim = 128;
  std::uint64_t vision_depth = 27;
  std::uint64_t vision_hidden = 1152;
  std::uint64_t vision_intermediate = 4304;
  std::uint64_t vision_positions = 2304;
  ExpertLayout layout = ExpertLayout::hub;
};

/// The other models of adapters.md D.
[[nodiscard]] Qwen35Shape qwen35_122b();
[[nodiscard]] Qwen35Shape qwen35_397b();
[[nodiscard]] QwenVlShape qwen_vl_235b();

/// A model with every kind of key (GDN and full attention, vision, MTP) in a few KiB: E = 4, H = 16, I = 8.
[[nodiscard]] Qwen35Shape tiny_qwen35();
/// The same of the other family: E = 4, H = 12, I = 8, 3 layers.
[[nodiscard]] QwenVlShape tiny_qwen_vl();

/// The tensors of a checkpoint, in one file, one after the other from byte 0.
[[nodiscard]] TensorCatalog make_catalog(Qwen35Shape const& shape);
[[nodiscard]] TensorCatalog make_vl_catalog(QwenVlShape const& shape);

/// Add a tensor at the end of the (last) file.
void append_tensor(TensorCatalog& catalog, std::string name, DType dtype, Shape shape);

[[nodiscard]] CatalogTensor& tensor_named(TensorCatalog& catalog, std::string_view name);
void remove_tensor(TensorCatalog& catalog, std::string_view name);

/// What config.json says of such a model, and the file itself.
[[nodiscard]] ModelConfig make_config(Qwen35Shape const& shape);
[[nodiscard]] ModelConfig make_vl_config(QwenVlShape const& shape);
[[nodiscard]] std::string make_config_json(Qwen35Shape const& shape);

/// The tensors of such a model under both their names.
[[nodiscard]] Model make_model(Qwen35Shape const& shape);
[[nodiscard]] Model make_vl_model(QwenVlShape const& shape);

/// `map_tensors` by the shapes alone.
[[nodiscard]] Model map_tensors(Family const& family, TensorCatalog const& catalog, ModelConfig const& config);

/// By HF key.
[[nodiscard]] HfTensor const& tensor_of(Model const& model, std::string_view key);
[[nodiscard]] Parameter const& parameter_of(Model const& model, std::string_view key);

}  // namespace rankslice::test

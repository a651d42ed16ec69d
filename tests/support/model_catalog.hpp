#pragma once

#include <cstdint>
#include <string>

#include "rankslice/tensor_catalog.hpp"

#include "model/family.hpp"

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
};

/// A model with every kind of key (GDN and full attention, vision, MTP) in a few KiB.
[[nodiscard]] Qwen35Shape tiny_qwen35();

/// The tensors of a checkpoint with grouped experts as on the Hub, in one file, one after the other from byte 0.
[[nodiscard]] TensorCatalog make_catalog(Qwen35Shape const& shape);

/// Add a tensor at the end of the (last) file.
void append_tensor(TensorCatalog& catalog, std::string name, DType dtype, Shape shape);

[[nodiscard]] CatalogTensor& tensor_named(TensorCatalog& catalog, std::string_view name);
void remove_tensor(TensorCatalog& catalog, std::string_view name);

/// What config.json says of such a model, and the file itself.
[[nodiscard]] ModelConfig make_config(Qwen35Shape const& shape);
[[nodiscard]] std::string make_config_json(Qwen35Shape const& shape);

/// The tensors of such a model under both their names.
[[nodiscard]] Model make_model(Qwen35Shape const& shape);

}  // namespace rankslice::test

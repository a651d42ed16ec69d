#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "rankslice/tensor_catalog.hpp"

namespace rankslice::test {

using Bytes = std::vector<std::byte>;

/// Everything of a file.
[[nodiscard]] Bytes file_bytes(std::string const& path);
/// Change one byte of it.
void flip_byte(std::string const& path, std::uint64_t offset);

[[nodiscard]] Bytes random_bytes(std::uint64_t count, std::uint64_t seed);

/// [E, R, C] as [E, C, R], element by element.
[[nodiscard]] Bytes swap_axes(Bytes const& bytes, Shape const& shape, std::uint64_t element_size);

/// A tensor as it stands in a safetensors file.
struct RawTensor {
  std::string dtype;
  Shape shape;
  std::string file;          ///< Path of the file.
  std::uint64_t offset = 0;  ///< Of the first byte there.
  Bytes bytes;
};

/// Every tensor of the safetensors files in a folder, by name, read without rankslice.
[[nodiscard]] std::map<std::string, RawTensor> read_raw_tensors(std::string const& folder);

/// A Hugging Face folder of a model with every kind of tensor and random values, 200 KiB in two files with an index,
/// config.json and one side file. Experts: 4 in each of 5 layers.
void write_small_checkpoint(std::string const& folder);

/// The same with the tensors of a catalog and another config.json.
void write_checkpoint(std::string const& folder, TensorCatalog const& catalog, std::string const& config_json);

/// A key of the small checkpoint.
inline constexpr auto kGateUpOfLayer2 = "model.language_model.layers.2.mlp.experts.gate_up_proj";

}  // namespace rankslice::test

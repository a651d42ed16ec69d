#include "support/raw_checkpoint.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <span>

#include "support/model_catalog.hpp"
#include "support/raw_safetensors.hpp"

namespace rankslice::test {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

/// The tensors [begin, end) of a catalog as one file.
void write_part(std::string const& path, TensorCatalog const& catalog, Range tensors) {
  Json header{{"__metadata__", {{"format", "pt"}}}};
  std::uint64_t size = 0;
  for (auto i = tensors.begin; i < tensors.end; ++i) {
    auto const& tensor = catalog.tensors[i];
    auto const bytes = tensor.extent.bytes.size();
    header[tensor.name] = {
        {"dtype", name(tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {size, size + bytes}}};
    size += bytes;
  }
  auto file = raw_header(header.dump());
  auto const values = random_bytes(size, tensors.begin);
  file.insert(file.end(), values.begin(), values.end());
  write_file(path, file);
}

}  // namespace

Bytes file_bytes(std::string const& path) {
  std::ifstream stream(path, std::ios::binary);
  std::string const text{std::istreambuf_iterator<char>(stream), {}};
  return bytes_of(text);
}

void flip_byte(std::string const& path, std::uint64_t offset) {
  auto bytes = file_bytes(path);
  bytes.at(offset) ^= std::byte{0x10};
  write_file(path, bytes);
}

Bytes random_bytes(std::uint64_t count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  Bytes bytes(count);
  for (auto& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

Bytes swap_axes(Bytes const& bytes, Shape const& shape, std::uint64_t element_size) {
  Bytes swapped(bytes.size());
  for (std::uint64_t e = 0; e < shape[0]; ++e) {
    for (std::uint64_t r = 0; r < shape[1]; ++r) {
      for (std::uint64_t c = 0; c < shape[2]; ++c) {
        auto const from = ((e * shape[1] + r) * shape[2] + c) * element_size;
        auto const to = ((e * shape[2] + c) * shape[1] + r) * element_size;
        std::memcpy(swapped.data() + to, bytes.data() + from, element_size);
      }
    }
  }
  return swapped;
}

std::map<std::string, RawTensor> read_raw_tensors(std::string const& folder) {
  std::map<std::string, RawTensor> tensors;
  for (auto const& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() != ".safetensors") continue;
    auto const file = file_bytes(entry.path().string());
    std::uint64_t length = 0;
    std::memcpy(&length, file.data(), 8);
    auto const* const text = reinterpret_cast<char const*>(file.data()) + 8;
    auto const header = Json::parse(text, text + length);
    for (auto const& [key, value] : header.items()) {
      if (key == "__metadata__") continue;
      auto const begin = 8 + length + value["data_offsets"][0].get<std::uint64_t>();
      auto const end = 8 + length + value["data_offsets"][1].get<std::uint64_t>();
      tensors[key] = {.dtype = value["dtype"],
                      .shape = value["shape"].get<Shape>(),
                      .file = entry.path().string(),
                      .offset = begin,
                      .bytes = {file.begin() + std::ptrdiff_t(begin), file.begin() + std::ptrdiff_t(end)}};
    }
  }
  return tensors;
}

void write_small_checkpoint(std::string const& folder) {
  write_checkpoint(folder, make_catalog(tiny_qwen35()), make_config_json(tiny_qwen35()));
}

void write_checkpoint(std::string const& folder, TensorCatalog const& catalog, std::string const& config_json) {
  fs::create_directories(folder);
  auto const count = catalog.tensors.size();
  Json weight_map;
  std::uint64_t total_size = 0;
  for (std::uint64_t file = 0; file < 2; ++file) {
    auto const name = fmt::format("model-{:05}-of-00002.safetensors", file + 1);
    Range const tensors{file * count / 2, (file + 1) * count / 2};
    write_part(folder + "/" + name, catalog, tensors);
    for (auto i = tensors.begin; i < tensors.end; ++i) {
      weight_map[catalog.tensors[i].name] = name;
      total_size += catalog.tensors[i].extent.bytes.size();
    }
  }
  Json const index{{"metadata", {{"total_size", total_size}}}, {"weight_map", weight_map}};
  write_file(folder + "/model.safetensors.index.json", bytes_of(index.dump(2)));
  write_file(folder + "/config.json", bytes_of(config_json));
  write_file(folder + "/tokenizer.json", bytes_of("{\"not\": \"really\"}"));
}

}  // namespace rankslice::test

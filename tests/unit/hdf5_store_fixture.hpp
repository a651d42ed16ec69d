#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <hdf5.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include "rankslice/store.hpp"

#include "format/hdf5_store_writer.hpp"
#include "support/temp_dir.hpp"

namespace rankslice::test {

inline std::vector<std::byte> bytes_of(std::string_view text) {
  auto const bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

inline std::string text_of(std::span<std::byte const> bytes) {
  std::string text(bytes.size(), '\0');
  if (!bytes.empty()) std::memcpy(text.data(), bytes.data(), bytes.size());
  return text;
}

inline std::string slurp(std::string const& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline void spill(std::string const& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

inline SideFile make_side_file(TempDir const& folder, std::string const& name, std::string_view text) {
  auto const path = folder.file(name);
  spill(path, text);
  return {name, text.size(), path, 0, {}};
}

/// One tensor of each kind of storage, names that need escaping, two headers, an index, three side files (one empty).
inline StoreContents example_contents(TempDir const& folder) {
  StoreContents contents;
  contents.family = "qwen3_5_moe";
  contents.tensors = {{".", DType::U8, {1}, 0},
                      {"layers.0.experts.down_projs", DType::BF16, {2, 3, 4}, 0},
                      {"layers.0.experts.packed", DType::F4, {3, 4}, 0},
                      {"layers.0.experts.scale", DType::F8_E8M0, {2, 3}, 0},
                      {"layers.0.mask", DType::BOOL, {3}, 0},
                      {"layers.0.nothing", DType::F32, {0, 7}, 0},
                      {"layers.0.phase", DType::C64, {2, 2}, 0},
                      {"norm/50%", DType::F32, {5}, 0},
                      {"steps", DType::I64, {}, 0}};
  contents.hf.files = {{"model-00001-of-00002.safetensors", 12345, bytes_of("\x08\0\0\0\0\0\0\0{}      ")},
                       {"model-00002-of-00002.safetensors", 678, bytes_of("another raw header")}};
  contents.hf.index_name = "model.safetensors.index.json";
  contents.hf.index = bytes_of(R"({"weight_map": {}})");
  contents.hf.config = bytes_of(R"({"model_type": "qwen3_5_moe"})");
  contents.hf.side_files = {make_side_file(folder, "config.json", text_of(contents.hf.config)),
                            make_side_file(folder, "empty.txt", ""),
                            make_side_file(folder, "tokenizer.json", "[\"a\", \"b\"]")};
  contents.source = {{"a.weight", {7, 3, 4}}, {"b/weight", {0xFFFFFFFFFFFFFFFF}}};
  contents.stored = {{"a.weight", {1, 2, 3}}};
  return contents;
}

inline StoreContents with_tensors(std::vector<StoreContents::Tensor> tensors) {
  StoreContents contents;
  contents.family = "qwen3_5_moe";
  contents.tensors = std::move(tensors);
  return contents;
}

/// The contents as a reader has to return them: with their offsets, and side files without a path.
inline std::string describe(StoreContents const& contents) {
  auto text = fmt::format("family {}\n", contents.family);
  for (auto const& t : contents.tensors) {
    text += fmt::format("tensor {} {} {} at {}\n", t.fqn, name(t.dtype), to_string(t.shape), t.offset);
  }
  for (auto const& file : contents.hf.files) {
    text += fmt::format("file {} {} {}\n", file.name, file.size, text_of(file.header));
  }
  text += fmt::format("index {} {}\n", contents.hf.index_name, text_of(contents.hf.index));
  text += fmt::format("config {}\n", text_of(contents.hf.config));
  for (auto const& side : contents.hf.side_files) text += fmt::format("side file {} {}\n", side.name, side.size);
  for (auto const& digest : contents.source) text += fmt::format("source {} {}\n", digest.hf_key, digest.values);
  for (auto const& digest : contents.stored) text += fmt::format("stored {} {}\n", digest.hf_key, digest.values);
  return text;
}

/// A complete store with these contents; the contents, with the offsets it gave.
inline StoreContents make_store(std::string const& path, StoreContents contents) {
  auto const layout = create_store(path, contents);
  for (std::size_t i = 0; i < contents.tensors.size(); ++i) contents.tensors[i].offset = layout.offsets[i];
  complete_store(path);
  return contents;
}

}  // namespace rankslice::test

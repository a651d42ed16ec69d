#include <nlohmann/json.hpp>

#include "checkpoint_parts.hpp"
#include "core/packed_json.hpp"

namespace rankslice {

namespace {

using nlohmann::json;

json to_binary(std::vector<std::byte> const& bytes) {
  auto const* const data = reinterpret_cast<std::uint8_t const*>(bytes.data());
  return json::binary({data, data + bytes.size()});
}

std::vector<std::byte> from_binary(json const& value) {
  auto const bytes = std::as_bytes(std::span(value.get_binary().data(), value.get_binary().size()));
  return {bytes.begin(), bytes.end()};
}

json to_json(std::optional<DType> dtype) { return dtype ? json(name(*dtype)) : json(); }

std::optional<DType> dtype_from(json const& value) {
  return value.is_null() ? std::nullopt : parse_dtype(value.get<std::string>());
}

json to_json(HfLayout const& hf) {
  auto files = json::array();
  for (auto const& file : hf.files) files.push_back({file.name, file.size, to_binary(file.header), file.modified_ns});
  auto side_files = json::array();
  for (auto const& side : hf.side_files) {
    side_files.push_back({side.name, side.size, side.path, side.offset, side.checksum, side.modified_ns});
  }
  return {{"headers", hf.headers},          {"files", files},
          {"index_name", hf.index_name},    {"index", to_binary(hf.index)},
          {"config", to_binary(hf.config)}, {"side_files", side_files},
          {"left_out", hf.left_out}};
}

HfLayout hf_layout_from(json const& value) {
  HfLayout hf;
  hf.headers = value["headers"];
  for (auto const& file : value["files"]) {
    hf.files.push_back({.name = file[0], .size = file[1], .header = from_binary(file[2]), .modified_ns = file[3]});
  }
  hf.index_name = value["index_name"];
  hf.index = from_binary(value["index"]);
  hf.config = from_binary(value["config"]);
  for (auto const& side : value["side_files"]) {
    hf.side_files.push_back({.name = side[0],
                             .size = side[1],
                             .path = side[2],
                             .offset = side[3],
                             .checksum = side[4],
                             .modified_ns = side[5]});
  }
  hf.left_out = value["left_out"].get<std::vector<std::string>>();
  return hf;
}

json to_json(std::vector<StoreContents::RecordedDigest> const& digests) {
  auto list = json::array();
  for (auto const& digest : digests) list.push_back({digest.hf_key, digest.values});
  return list;
}

std::vector<StoreContents::RecordedDigest> digests_from(json const& value) {
  std::vector<StoreContents::RecordedDigest> digests;
  for (auto const& digest : value) {
    digests.push_back({.hf_key = digest[0], .values = digest[1].get<std::vector<std::uint64_t>>()});
  }
  return digests;
}

}  // namespace

std::vector<std::byte> pack(CheckpointParts const& parts) {
  auto files = json::array();
  for (auto const& file : parts.files) files.push_back({file.name, file.path, file.size, file.modified_ns});
  auto native = json::array();
  for (auto const& tensor : parts.native) {
    native.push_back({tensor.fqn, name(tensor.dtype), tensor.shape, tensor.offsets, tensor.local, tensor.extent.file,
                      tensor.extent.bytes.begin, tensor.extent.bytes.end, to_json(tensor.hf_dtype)});
  }
  json const value{{"format", parts.format},
                   {"path", parts.path},
                   {"source", parts.source},
                   {"family", parts.family},
                   {"expert_layout", parts.expert_layout},
                   {"text_only", parts.text_only ? json(*parts.text_only) : json()},
                   {"dtype", to_json(parts.dtype)},
                   {"hf", to_json(parts.hf)},
                   {"hf_folder", parts.hf_folder},
                   {"selected", parts.selected},
                   {"files", files},
                   {"native", native},
                   {"source_digests", to_json(parts.source_digests)},
                   {"stored_digests", to_json(parts.stored_digests)},
                   {"warnings", parts.warnings}};
  return pack_json(value);
}

CheckpointParts unpack(std::vector<std::byte> const& bytes) {
  auto const value = unpack_json(bytes);
  CheckpointParts parts;
  parts.format = value["format"];
  parts.path = value["path"];
  parts.source = value["source"];
  parts.family = value["family"];
  parts.expert_layout = value["expert_layout"];
  if (!value["text_only"].is_null()) parts.text_only = value["text_only"].get<bool>();
  parts.dtype = dtype_from(value["dtype"]);
  parts.hf = hf_layout_from(value["hf"]);
  parts.hf_folder = value["hf_folder"];
  parts.selected = value["selected"].get<std::vector<std::string>>();
  for (auto const& file : value["files"]) {
    parts.files.push_back({.name = file[0], .path = file[1], .size = file[2], .modified_ns = file[3]});
  }
  for (auto const& tensor : value["native"]) {
    parts.native.push_back({.fqn = tensor[0],
                            .dtype = parse_dtype(tensor[1].get<std::string>()).value(),
                            .shape = tensor[2].get<Shape>(),
                            .offsets = tensor[3].get<Shape>(),
                            .local = tensor[4].get<Shape>(),
                            .extent = {.file = tensor[5], .bytes = {tensor[6], tensor[7]}},
                            .hf_dtype = dtype_from(tensor[8])});
  }
  parts.source_digests = digests_from(value["source_digests"]);
  parts.stored_digests = digests_from(value["stored_digests"]);
  parts.warnings = value["warnings"].get<std::vector<std::string>>();
  return parts;
}

}  // namespace rankslice

#include "format/shards.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "rankslice/error.hpp"

namespace rankslice {

namespace {

using nlohmann::json;

constexpr auto kFormat = "shards/1";

json parse_field(std::map<std::string, std::string> const& metadata, std::string const& field,
                 std::string const& file) {
  auto const found = metadata.find(field);
  if (found == metadata.end()) throw FormatError(fmt::format("{}: __metadata__ has no '{}'", file, field), file);
  return json::parse(found->second);
}

}  // namespace

std::string shard_file_name(int rank) { return fmt::format("rank-{:05}.safetensors", rank); }

std::map<std::string, std::string> to_metadata(ShardMetadata const& shard) {
  json const mesh{{"ep_replicate", shard.mesh.ep_replicate}, {"ep_shard", shard.mesh.ep_shard}, {"ep", shard.mesh.ep}};
  json const coordinate{{"ep_replicate", shard.coordinate.ep_replicate},
                        {"ep_shard", shard.coordinate.ep_shard},
                        {"ep", shard.coordinate.ep}};
  auto tensors = json::object();
  for (auto const& [fqn, place] : shard.tensors) {
    tensors[fqn] = {{"global_shape", place.global_shape}, {"offsets", place.offsets}};
  }
  return {{"format", "pt"},
          {"rankslice_format", kFormat},
          {"mesh", mesh.dump()},
          {"mesh_coordinate", coordinate.dump()},
          {"family", shard.family},
          {"source", shard.source},
          {"source_fingerprint", shard.source_fingerprint},
          {"tensors", tensors.dump()}};
}

ShardMetadata parse_shard_metadata(std::map<std::string, std::string> const& metadata, std::string const& file) {
  auto const version = metadata.find("rankslice_format");
  if (version == metadata.end() || version->second != kFormat) {
    throw FormatError(fmt::format("{}: __metadata__ rankslice_format is '{}', expected '{}'", file,
                                  version == metadata.end() ? "" : version->second, kFormat),
                      file);
  }
  try {
    ShardMetadata shard;
    auto const mesh = parse_field(metadata, "mesh", file);
    shard.mesh = {mesh.at("ep_replicate"), mesh.at("ep_shard"), mesh.at("ep")};
    auto const at = parse_field(metadata, "mesh_coordinate", file);
    shard.coordinate = {at.at("ep_replicate"), at.at("ep_shard"), at.at("ep")};
    auto const positive = shard.mesh.ep_replicate > 0 && shard.mesh.ep_shard > 0 && shard.mesh.ep > 0;
    constexpr std::int64_t kMostRanks = 1 << 20;
    if (!positive || std::int64_t{shard.mesh.ep_replicate} * shard.mesh.ep_shard > kMostRanks ||
        std::int64_t{shard.mesh.ep_replicate} * shard.mesh.ep_shard * shard.mesh.ep > kMostRanks) {
      throw FormatError(fmt::format("{}: __metadata__: the mesh {} is none", file, mesh.dump()), file);
    }
    shard.family = metadata.at("family");
    shard.source = metadata.at("source");
    shard.source_fingerprint = metadata.at("source_fingerprint");
    auto const tensors = parse_field(metadata, "tensors", file);  // items() only refers to it
    for (auto const& [fqn, place] : tensors.items()) {
      shard.tensors[fqn] = {place.at("global_shape").get<Shape>(), place.at("offsets").get<Shape>()};
    }
    return shard;
  } catch (json::exception const& error) {
    throw FormatError(fmt::format("{}: __metadata__: {}", file, error.what()), file);
  } catch (std::out_of_range const&) {
    throw FormatError(fmt::format("{}: __metadata__ lacks family, source or source_fingerprint", file), file);
  }
}

}  // namespace rankslice

#include "format/shards.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <algorithm>

#include "rankslice/error.hpp"

#include "core/json_object.hpp"

namespace rankslice {

namespace {

using nlohmann::json;

using Metadata = std::map<std::string, std::string>;

constexpr auto kFormat = "shards/1";
constexpr std::uint64_t kMostRanks = 1 << 20;

/// One field of `__metadata__`, for the errors.
struct Field {
  std::string const& file;
  std::string name;

  [[nodiscard]] std::string place() const { return fmt::format("{}: __metadata__ '{}'", file, name); }
  [[noreturn]] void fail(std::string const& problem, std::string const& tensor = {}) const {
    throw FormatError(fmt::format("{}: {}", place(), problem), file, tensor);
  }
};

std::string const& text_of(Metadata const& metadata, Field const& field) {
  auto const found = metadata.find(field.name);
  if (found == metadata.end()) field.fail("missing");
  return found->second;
}

json object_of(Metadata const& metadata, Field const& field) {
  return parse_json_object(text_of(metadata, field), field.place(), field.file);
}

/// The number of one dimension of the mesh.
int number_of(json const& object, std::string const& dimension, Range allowed, Field const& field) {
  auto const found = object.find(dimension);
  auto const natural = found != object.end() && found->is_number_unsigned();
  auto const number = natural ? found->get<std::uint64_t>() : allowed.end;
  if (number < allowed.begin || number >= allowed.end) {
    field.fail(
        fmt::format("expected {} from {} to {}, found {}", dimension, allowed.begin, allowed.end - 1, object.dump()));
  }
  return static_cast<int>(number);
}

/// Rule 16, in upstream's words: what is sharded along anything else, we would take for the whole.
void check_dimensions(json const& object, Field const& field) {
  std::vector<std::string> names;
  for (auto const& [name, size] : object.items()) names.push_back(name);
  auto const is_known = [](std::string const& name) {
    return name == "ep" || name == "ep_shard" || name == "ep_replicate";
  };
  if (std::ranges::all_of(names, is_known)) return;
  field.fail(fmt::format("Expected mesh dimension names to contain only 'ep', 'ep_shard', 'ep_replicate', got ('{}')",
                         fmt::join(names, "', '")));
}

Mesh mesh_of(Metadata const& metadata, Field const& field) {
  auto const object = object_of(metadata, field);
  check_dimensions(object, field);
  auto ranks = std::uint64_t{1};
  auto const size = [&](std::string const& dimension) {
    auto const number = number_of(object, dimension, {1, kMostRanks / ranks + 1}, field);
    ranks *= static_cast<std::uint64_t>(number);
    return number;
  };
  return {.ep_replicate = size("ep_replicate"), .ep_shard = size("ep_shard"), .ep = size("ep")};
}

MeshCoordinate coordinate_of(Metadata const& metadata, Mesh const& mesh, Field const& field) {
  auto const object = object_of(metadata, field);
  auto const position = [&](std::string const& dimension, int size) {
    return number_of(object, dimension, {0, static_cast<std::uint64_t>(size)}, field);
  };
  return {.ep_replicate = position("ep_replicate", mesh.ep_replicate),
          .ep_shard = position("ep_shard", mesh.ep_shard),
          .ep = position("ep", mesh.ep)};
}

HeaderOrigin headers_of(Metadata const& metadata, Field const& field) {
  auto const& text = text_of(metadata, field);
  auto const origin = parse_header_origin(text);
  if (!origin) field.fail("expected source, selection or state, found " + text);
  return *origin;
}

std::optional<Shape> natural_numbers(json const& object, std::string const& name) {
  if (!object.is_object() || !object.contains(name) || !object[name].is_array()) return std::nullopt;
  auto const is_natural = [](json const& number) { return number.is_number_unsigned(); };
  if (!std::ranges::all_of(object[name], is_natural)) return std::nullopt;
  return object[name].get<Shape>();
}

std::optional<DType> hf_dtype_of(json const& place, std::string const& fqn, Field const& field) {
  auto const found = place.find("hf_dtype");
  if (found == place.end()) return std::nullopt;
  auto const dtype = found->is_string() ? parse_dtype(found->get<std::string>()) : std::nullopt;
  if (!dtype)
    field.fail(fmt::format("{}: expected the name of a dtype as hf_dtype, found {}", fqn, found->dump()), fqn);
  return dtype;
}

std::map<std::string, ShardMetadata::Place> places_of(Metadata const& metadata, Field const& field) {
  auto const object = object_of(metadata, field);
  std::map<std::string, ShardMetadata::Place> places;
  for (auto const& [fqn, place] : object.items()) {
    auto const shape = natural_numbers(place, "global_shape");
    auto const offsets = natural_numbers(place, "offsets");
    if (!shape || !offsets || shape->size() != offsets->size()) {
      field.fail(fmt::format("{}: expected global_shape and offsets, one number per axis, found {}", fqn, place.dump()),
                 fqn);
    }
    places[fqn] = {*shape, *offsets, hf_dtype_of(place, fqn, field)};
  }
  return places;
}

}  // namespace

std::string shard_file_name(int rank) { return fmt::format("rank-{:05}.safetensors", rank); }

Metadata to_metadata(ShardMetadata const& shard) {
  json const mesh{{"ep_replicate", shard.mesh.ep_replicate}, {"ep_shard", shard.mesh.ep_shard}, {"ep", shard.mesh.ep}};
  json const coordinate{{"ep_replicate", shard.coordinate.ep_replicate},
                        {"ep_shard", shard.coordinate.ep_shard},
                        {"ep", shard.coordinate.ep}};
  auto tensors = json::object();
  for (auto const& [fqn, place] : shard.tensors) {
    tensors[fqn] = {{"global_shape", place.global_shape}, {"offsets", place.offsets}};
    if (place.hf_dtype) tensors[fqn]["hf_dtype"] = name(*place.hf_dtype);
  }
  return {{"format", "pt"},
          {"rankslice_format", kFormat},
          {"mesh", mesh.dump()},
          {"mesh_coordinate", coordinate.dump()},
          {"family", shard.family},
          {"source", shard.source},
          {"source_fingerprint", shard.source_fingerprint},
          {"fingerprint", shard.fingerprint},
          {"headers", std::string(name(shard.headers))},
          {"expert_layout", shard.expert_layout},
          {"decoder_experts", shard.decoder_experts},
          {"mtp_experts", shard.mtp_experts},
          {"tensors", tensors.dump()}};
}

ShardMetadata parse_shard_metadata(Metadata const& metadata, std::string const& file) {
  auto const text = [&](std::string const& name) { return text_of(metadata, {file, name}); };
  if (auto const format = text("rankslice_format"); format != kFormat) {
    Field{file, "rankslice_format"}.fail(fmt::format("expected {}, found {}", kFormat, format));
  }
  auto const mesh = mesh_of(metadata, {file, "mesh"});
  return {.mesh = mesh,
          .coordinate = coordinate_of(metadata, mesh, {file, "mesh_coordinate"}),
          .family = text("family"),
          .source = text("source"),
          .source_fingerprint = text("source_fingerprint"),
          .fingerprint = text("fingerprint"),
          .headers = headers_of(metadata, {file, "headers"}),
          .expert_layout = text("expert_layout"),
          .decoder_experts = text("decoder_experts"),
          .mtp_experts = text("mtp_experts"),
          .tensors = places_of(metadata, {file, "tensors"})};
}

}  // namespace rankslice

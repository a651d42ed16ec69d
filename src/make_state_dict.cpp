#include "rankslice/make_state_dict.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "rankslice/error.hpp"

#include "checkpoint_parts.hpp"
#include "core/mesh.hpp"
#include "core/slice_at.hpp"
#include "format/hf_folder.hpp"
#include "fresh_source.hpp"
#include "io/file.hpp"
#include "model/key_table.hpp"
#include "plan/held.hpp"
#include "state/consistency.hpp"
#include "state/local_tensor.hpp"

namespace rankslice {

namespace {

constexpr auto kPath = "the state dict";

std::vector<std::byte> config_among(std::vector<SideFile> const& side_files) {
  auto const config = std::ranges::find(side_files, "config.json", &SideFile::name);
  if (config == side_files.end()) return {};
  if (config->size > kMaxSideFileBytes) {
    throw FormatError(
        fmt::format("{}: expected at most {} bytes, found {}", config->path, kMaxSideFileBytes, config->size),
        config->path);
  }
  std::vector<std::byte> bytes(config->size);
  open_reader(config->path)->read(bytes, config->offset);
  return bytes;
}

CheckpointParts parts_of(std::map<std::string, LocalTensor> const& tensors, StateOptions const& options) {
  CheckpointParts parts;
  parts.format = CheckpointFormat::state;
  parts.path = kPath;
  parts.family = options.family;
  for (auto const& [fqn, tensor] : tensors) {
    if (is_extra_state(fqn)) continue;
    Shape const nowhere(tensor.global_shape.size(), 0);
    parts.native.push_back({fqn, tensor.dtype, tensor.global_shape, nowhere, tensor.global_shape, {}});
  }
  if (parts.native.empty()) throw PlanError("a state dict without tensors makes no checkpoint");
  auto const config = config_among(options.side_files);
  FreshOptions forms{.expert_layout = options.expert_layout};
  if (options.mtp_experts) {
    forms.mtp_experts = *options.mtp_experts;
  } else if (!config.empty()) {
    forms.mtp_experts = mtp_form(parse_model_config(config));
  }
  add_fresh_files(parts, forms, options.max_file_bytes);
  parts.hf.side_files = options.side_files;
  std::ranges::sort(parts.hf.side_files, {}, &SideFile::name);
  parts.hf.config = config;
  if (options.partial) parts.hf.headers = HeaderOrigin::selection;
  return parts;
}

/// Names that do not lead back would send tensors home under others.
void require_names(Checkpoint const& source, std::vector<CheckpointParts::Native> const& native) {
  std::unordered_set<std::string_view> led_back;
  for (auto const& parameter : source.model.parameters) led_back.insert(parameter.fqn);
  for (auto const& tensor : native) {
    if (led_back.contains(tensor.fqn)) continue;
    throw FormatError(fmt::format("{}: is no native name of {}: exported, it would be loaded under another", tensor.fqn,
                                  source.family),
                      {}, tensor.fqn);
  }
}

/// Where the caller says that a tensor lies, or else where the mesh has it.
ShardedTensor place(Checkpoint const& source, std::uint32_t index, LocalTensor const& local, Mesh const& mesh,
                    MeshCoordinate const& coordinate) {
  auto const& parameter = source.model.parameters[index];
  if (local.offsets.empty() != local.local_shape.empty()) {
    throw PlanError(
        fmt::format("{}: its part has {} but no {}", parameter.fqn, local.offsets.empty() ? "a local shape" : "offsets",
                    local.offsets.empty() ? "offsets" : "local shape"),
        parameter.fqn);
  }
  ShardedTensor tensor{.parameter = parameter,
                       .local_shape = local.local_shape,
                       .offsets = local.offsets,
                       .placements = {},
                       .data = {},
                       .index = index};
  auto const by_mesh = local.offsets.empty();
  require_inside(mesh, coordinate);
  if (by_mesh || divides(mesh, parameter)) {
    auto const given = held_slice(parameter, mesh, coordinate);
    if (by_mesh || slice_at(parameter, local.offsets, local.local_shape) == given) {
      tensor = place_local_tensor(parameter, {.parameter = index, .slice = given}, mesh);
    }
  }
  tensor.data = local.data;
  return tensor;
}

/// @throws PlanError when a checkpoint has a parameter otherwise than the caller.
void require_like(LocalTensor const& local, Parameter const& parameter, std::string const& path) {
  if (local.dtype == parameter.dtype && local.global_shape == parameter.shape) return;
  throw PlanError(fmt::format("{}: is {} {}, in {} it is {} {}", parameter.fqn, name(local.dtype),
                              to_string(local.global_shape), path, name(parameter.dtype), to_string(parameter.shape)),
                  parameter.fqn);
}

}  // namespace

StateDict make_state_dict(std::map<std::string, LocalTensor> const& tensors, Mesh const& mesh,
                          MeshCoordinate const& coordinate, StateOptions const& options) {
  auto parts = parts_of(tensors, options);
  auto const native = parts.native;
  auto const source = std::make_shared<Checkpoint const>(assemble(std::move(parts)));
  require_names(*source, native);
  StateDict state{.tensors = {}, .mesh = mesh, .coordinate = coordinate, .source = source, .read = {}};
  for (std::uint32_t i = 0; i < source->model.parameters.size(); ++i) {
    auto const& fqn = source->model.parameters[i].fqn;
    state.tensors.emplace(fqn, place(*source, i, tensors.at(fqn), mesh, coordinate));
  }
  require_consistent(state);
  return state;
}

StateDict make_state_dict(std::shared_ptr<Checkpoint const> const& source,
                          std::map<std::string, LocalTensor> const& tensors, Mesh const& mesh,
                          MeshCoordinate const& coordinate) {
  auto const& parameters = source->model.parameters;
  std::unordered_map<std::string_view, std::uint32_t> by_fqn;
  for (std::uint32_t i = 0; i < parameters.size(); ++i) by_fqn.emplace(parameters[i].fqn, i);
  StateDict state{.tensors = {}, .mesh = mesh, .coordinate = coordinate, .source = source, .read = {}};
  for (auto const& [fqn, tensor] : tensors) {
    auto const found = by_fqn.find(fqn);
    if (found == by_fqn.end()) throw PlanError(fmt::format("{}: is no tensor of {}", fqn, source->path), fqn);
    require_like(tensor, parameters[found->second], source->path);
    state.tensors.emplace(fqn, place(*source, found->second, tensor, mesh, coordinate));
  }
  require_consistent(state);
  return state;
}

}  // namespace rankslice

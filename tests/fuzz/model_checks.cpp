#include "fuzz/model_checks.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "checkpoint_parts.hpp"
#include "core/block_scales.hpp"
#include "fresh_source.hpp"
#include "fuzz/fuzz.hpp"
#include "plan/plan.hpp"

namespace rankslice::fuzz {

namespace {

// Plans of more bytes are not followed into the files, where they may be as many ranges.
constexpr std::uint64_t kFollowed = 1 << 20;

void require_tiling(Model const& model, Parameter const& parameter) {
  if (!parameter.stacked_experts) {
    require(parameter.tensors.size() == 1, "a dense parameter is one tensor");
    require(model.tensors[parameter.tensors.front()].shape == parameter.shape, "a dense parameter keeps its shape");
    return;
  }
  require(parameter.shape.size() == 3, "stacked experts have three axes");
  Range experts{0, 0};
  auto column = parameter.columns();
  for (auto const index : parameter.tensors) {
    auto const& tensor = model.tensors[index];
    auto const next_expert = column == parameter.columns();
    require(tensor.experts.begin == (next_expert ? experts.end : experts.begin), "expert follows expert");
    require(tensor.columns.begin == (next_expert ? 0 : column), "column follows column");
    require(next_expert || tensor.experts == experts, "the matrices of an expert are together");
    require(element_count(tensor.shape) == tensor.experts.size() * parameter.row_count() * tensor.columns.size(),
            "a tensor has the elements of its box");
    experts = tensor.experts;
    column = tensor.columns.end;
  }
  require(experts.end == parameter.part_count() && column == parameter.columns(), "the tensors fill the parameter");
}

/// Slices of one parameter that do not overlap and have all its elements.
void require_tiled(Parameter const& parameter, std::vector<Slice> const& slices) {
  std::uint64_t elements = 0;
  for (std::size_t i = 0; i < slices.size(); ++i) {
    require(intersection(slices[i], parameter.whole()) == slices[i] || slices[i].empty(), "a slice is in its whole");
    elements += slices[i].size();
    for (std::size_t j = 0; j < i; ++j) require(intersection(slices[i], slices[j]).empty(), "no two slices overlap");
  }
  require(elements == parameter.whole().size(), "the slices are all of a parameter");
}

using Plan = std::vector<PlannedSlice>;

bool lies_in(Range const& inner, Range const& outer) {
  return inner.begin <= inner.end && outer.begin <= inner.begin && inner.end <= outer.end;
}

void require_reads(Checkpoint const& checkpoint, Plan const& plan, std::uint64_t bytes_read) {
  if (bytes_read > kFollowed) return;
  auto const& model = checkpoint.model;
  auto const form = checkpoint.storage.form;
  std::uint64_t bytes = 0;
  for (auto const& wanted : plan) {
    for (auto const& located : locate(checkpoint.storage, model, wanted)) {
      auto const& piece = located.piece->extent.bytes;
      auto const& tensor = model.tensors[located.piece->tensor];
      require(piece.size() == byte_size(tensor.dtype, tensor.shape), "a piece has the bytes of its tensor");
      for (auto const& range : read_ranges(model, form, located)) {
        require(lies_in(range, piece), "a range lies in its tensor");
        bytes += range.size();
      }
      if (!located.piece->scales) continue;
      auto const scales = scale_range(model, *located.piece, located.slice);
      require(lies_in(scales, located.piece->scales->bytes) || scales.empty(), "scales are some of their tensor's");
      bytes += scales.size();
    }
  }
  require(bytes == bytes_read, "the ranges have as many bytes as the plan says");
}

void require_load_plans(Checkpoint const& checkpoint, Mesh const& mesh) {
  auto const& model = checkpoint.model;
  auto const sums = plan_all_ranks(model, Form::hf, mesh);
  std::map<std::tuple<int, std::uint32_t>, std::vector<Slice>> slices;  // by (replica, parameter)
  for (int rank = 0; rank < mesh.ranks(); ++rank) {
    auto const at = mesh.coordinate(rank);
    auto const plan = make_load_plan(model, Form::hf, mesh, at);
    auto const& sum = sums[static_cast<std::size_t>(rank)];
    require(sum.wanted == plan.bytes_wanted && sum.read == plan.bytes_read && sum.owned == plan.bytes_owned,
            "a rank's plan has as many bytes as that of all ranks says");
    require_reads(checkpoint, plan.slices, plan.bytes_read);
    for (auto const& [parameter, slice] : plan.slices) {
      auto const& whole = model.parameters[parameter];
      require(whole.stacked_experts || slice == whole.whole(), "every rank holds a dense parameter");
      if (whole.stacked_experts) slices[{at.ep_replicate, parameter}].push_back(slice);
    }
  }
  for (auto const& [key, of_replica] : slices) require_tiled(model.parameters[std::get<1>(key)], of_replica);
}

void require_save_plans(Model const& model, Mesh const& mesh) {
  std::vector<std::vector<Slice>> slices(model.parameters.size());
  for (int rank = 0; rank < mesh.ranks(); ++rank) {
    for (auto const& [parameter, slice] : make_save_plan(model, {.mesh = mesh}, rank)) {
      slices[parameter].push_back(slice);
    }
  }
  for (std::size_t i = 0; i < slices.size(); ++i) require_tiled(model.parameters[i], slices[i]);
}

std::map<std::string, std::tuple<DType, Shape>> natives(Model const& model) {
  std::map<std::string, std::tuple<DType, Shape>> by_fqn;
  for (auto const& parameter : model.parameters) by_fqn[parameter.fqn] = {parameter.dtype, parameter.shape};
  return by_fqn;
}

}  // namespace

void require_filled(TensorCatalog const& catalog, Model const& model) {
  require(model.tensors.size() == catalog.tensors.size(), "every tensor is in the model");
  std::vector<bool> is_used(model.tensors.size());
  std::set<std::string_view> fqns;
  for (std::uint32_t i = 0; i < model.parameters.size(); ++i) {
    auto const& parameter = model.parameters[i];
    require(fqns.insert(parameter.fqn).second, "no two parameters have one name");
    require(!parameter.tensors.empty(), "a parameter is made of tensors");
    for (auto const tensor : parameter.tensors) {
      require(model.tensors[tensor].parameter == i && !is_used[tensor], "a tensor is of one parameter");
      is_used[tensor] = true;
    }
    require_tiling(model, parameter);
  }
  for (std::size_t i = 0; i < model.tensors.size(); ++i) {
    auto const& [key, dtype, shape] = std::tie(model.tensors[i].key, model.tensors[i].dtype, model.tensors[i].shape);
    require(key == catalog.tensors[i].name && dtype == catalog.tensors[i].dtype && shape == catalog.tensors[i].shape,
            "a tensor is that of the catalog");
    require(is_used[i] || model.tensors[i].is_scales, "a tensor that is no scales is used");
  }
}

void require_plans(Checkpoint const& checkpoint, Mesh const& mesh) {
  auto const is_possible = accepts([&] { (void)plan_all_ranks(checkpoint.model, Form::hf, mesh); });
  for (int rank = 0; rank < mesh.ranks(); ++rank) {
    auto const plan = [&] { (void)make_load_plan(checkpoint.model, Form::hf, mesh, mesh.coordinate(rank)); };
    require(accepts(plan) == is_possible, "all ranks agree on whether there is a plan");
  }
  if (!is_possible) return;
  require_load_plans(checkpoint, mesh);
  require_save_plans(checkpoint.model, mesh);
}

void require_way_back(Checkpoint const& checkpoint) {
  CheckpointParts parts;
  parts.format = CheckpointFormat::state;
  parts.path = "the state dict";
  parts.family = checkpoint.family;
  for (auto const& parameter : checkpoint.model.parameters) {
    parts.native.push_back({parameter.fqn, parameter.dtype, parameter.shape, {}, {}, {}});
  }
  if (!accepts([&] { add_fresh_files(parts, expert_forms(checkpoint)); })) return;
  Checkpoint again;
  if (!accepts([&] { again = assemble(parts); })) return;
  require_filled(again.catalog, again.model);
  require(natives(again.model) == natives(checkpoint.model), "fresh files lead to the same native tensors");
}

}  // namespace rankslice::fuzz

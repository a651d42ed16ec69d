#include "plan/row_exchange_plan.hpp"

#include <algorithm>
#include <map>
#include <tuple>

#include "core/block_scales.hpp"
#include "plan/held.hpp"
#include "plan/plan.hpp"

namespace rankslice {

namespace {

/// A band of balanced parts of some rows.
Range band_of_rows(Range rows, std::size_t place, std::size_t places) {
  auto const part = balanced_part(rows.size(), places, place);
  return {rows.begin + part.begin, rows.begin + part.end};
}

/// The rows of a stored matrix in blocks.
std::vector<Range> blocks_of_rows(Parameter const& parameter, std::uint64_t rows, std::uint64_t block_bytes) {
  auto const row_bytes = parameter.row_count() * parameter.unit_bytes(Form::native);
  auto const most = std::max<std::uint64_t>(1, block_bytes / row_bytes);
  auto const count = (rows + most - 1) / most;
  std::vector<Range> blocks;
  for (std::uint64_t i = 0; i < count; ++i) blocks.push_back(balanced_part(rows, count, i));
  return blocks;
}

/// How many rows an HF tensor has of each expert.
std::uint64_t stored_rows(HfTensor const& tensor) { return tensor.columns.size(); }

void append_blocks(RowExchangePlan& plan, Storage const& storage, Model const& model, PlannedSlice const& wanted,
                   std::uint64_t block_bytes) {
  auto const& parameter = model.parameters[wanted.parameter];
  for (auto const& [piece, slice] : locate(storage, model, wanted)) {
    auto const blocks = blocks_of_rows(parameter, stored_rows(model.tensors[piece->tensor]), block_bytes);
    for (auto expert = slice.part.begin; expert < slice.part.end; ++expert) {
      for (auto const& rows : blocks) plan.blocks.push_back({.piece = piece, .expert = expert, .rows = rows});
    }
  }
}

void sort_by_place_in_files(std::span<RowBlock> blocks) {
  std::ranges::sort(blocks, {}, [](RowBlock const& block) {
    return std::tuple(block.piece->extent, block.expert, block.rows.begin);
  });
}

/// Of rows of one expert in an HF tensor, at one place of the group.
void add_block(RowTraffic& traffic, Model const& model, HfTensor const& tensor, Range rows, std::size_t place,
               std::size_t places) {
  auto const& parameter = model.parameters[tensor.parameter];
  auto const columns = parameter.row_count() / places;  // of each stored row every rank's own
  auto const message = [&](std::size_t from) {
    return band_of_rows(rows, from, places).size() * columns * parameter.unit_bytes(Form::native) + kRowSumBytes;
  };
  auto const band = band_of_rows(rows, place, places);
  auto const unit = parameter.unit_bytes(Form::hf);
  traffic.read += band.size() * parameter.row_count() * unit;
  traffic.wanted_alone += rows.size() * columns * unit;
  traffic.read_alone += rows.size() * parameter.row_count() * unit;
  if (tensor.scales && rows.begin == 0) {
    auto const& of_tensor = model.tensors[*tensor.scales];
    auto const scales = byte_size(of_tensor.dtype, of_tensor.shape) / tensor.experts.size();
    if (!band.empty()) traffic.read += scales;
    traffic.wanted_alone += scales;
    traffic.read_alone += scales;
  }
  for (std::size_t other = 0; other < places; ++other) {
    if (other == place) continue;
    traffic.sent += message(place);
    traffic.received += message(other);
  }
}

RowTraffic operator*(RowTraffic const& traffic, std::uint64_t times) {
  return {.read = traffic.read * times,
          .wanted_alone = traffic.wanted_alone * times,
          .read_alone = traffic.read_alone * times,
          .sent = traffic.sent * times,
          .received = traffic.received * times};
}

RowTraffic operator+(RowTraffic const& a, RowTraffic const& b) {
  return {.read = a.read + b.read,
          .wanted_alone = a.wanted_alone + b.wanted_alone,
          .read_alone = a.read_alone + b.read_alone,
          .sent = a.sent + b.sent,
          .received = a.received + b.received};
}

/// Of one expert of a parameter, at one place of the group.
RowTraffic traffic_of_expert(Model const& model, Parameter const& parameter, std::size_t place, std::size_t places) {
  RowTraffic traffic;
  for (auto const index : parameter.tensors) {
    auto const& tensor = model.tensors[index];
    if (tensor.experts.begin != 0) continue;
    for (auto const& rows : blocks_of_rows(parameter, stored_rows(tensor), kRowBlockBytes)) {
      add_block(traffic, model, tensor, rows, place, places);
    }
  }
  return traffic;
}

}  // namespace

bool exchanges_rows(Parameter const& parameter, Form storage_form, Mesh const& mesh) {
  if (mesh.ep_shard == 1 || !parameter.stacked_experts) return false;
  auto held = held_slice(parameter, mesh, {});
  held.part = {0, 1};
  return parameter.read_for(held, storage_form) != held;
}

RowExchangePlan plan_row_exchange(Storage const& storage, Model const& model, Holdings const& holdings, int rank,
                                  std::uint64_t batch_bytes, std::uint64_t block_bytes) {
  auto const& mesh = holdings.mesh;
  auto at = mesh.coordinate(rank);
  RowExchangePlan plan{.place = static_cast<std::size_t>(at.ep_shard)};
  for (at.ep_shard = 0; at.ep_shard < mesh.ep_shard; ++at.ep_shard) plan.group.push_back(mesh.rank(at));
  at.ep_shard = 0;
  std::uint64_t bytes = 0;  // of a batch and all experts, so that every rank divides the parameters in the same way
  auto const most = batch_bytes * static_cast<std::uint64_t>(mesh.ep);
  for (std::uint32_t i = 0; i < model.parameters.size(); ++i) {
    auto const& parameter = model.parameters[i];
    if (holdings.division(i) != nullptr || !exchanges_rows(parameter, storage.form, mesh)) continue;
    plan.parameters.push_back(i);
    auto const size = parameter.bytes(parameter.whole(), Form::native);
    if (plan.batches.empty() || bytes + size > most) {
      plan.batches.push_back({plan.blocks.size(), plan.blocks.size()});
      bytes = 0;
    }
    bytes += size;
    auto const experts = held_slice(parameter, mesh, at).part;
    append_blocks(plan, storage, model, {i, {.part = experts, .rows = {0, parameter.row_count()}}}, block_bytes);
    plan.batches.back().end = plan.blocks.size();
  }
  for (auto const& batch : plan.batches) {
    sort_by_place_in_files(std::span(plan.blocks).subspan(batch.begin, batch.size()));
  }
  return plan;
}

Range band_of(RowBlock const& block, std::size_t place, std::size_t places) {
  return band_of_rows(block.rows, place, places);
}

Range bytes_of(Model const& model, RowBlock const& block, Range rows) {
  auto const& parameter = model.parameters[block.piece->parameter];
  auto const& tensor = model.tensors[block.piece->tensor];
  auto const row_bytes = parameter.row_count() * parameter.unit_bytes(Form::hf);
  auto const before = (block.expert - tensor.experts.begin) * stored_rows(tensor);
  auto const begin = block.piece->extent.bytes.begin;
  return {begin + (before + rows.begin) * row_bytes, begin + (before + rows.end) * row_bytes};
}

std::vector<Extent> row_extents(Model const& model, RowExchangePlan const& plan) {
  std::vector<Extent> extents;
  for (auto const& block : plan.blocks) {
    auto const band = bytes_of(model, block, band_of(block, plan.place, plan.group.size()));
    if (band.empty()) continue;
    auto const scales = scale_range(model, *block.piece, {.part = {block.expert, block.expert + 1}, .rows = {0, 1}});
    if (!scales.empty()) extents.push_back({block.piece->scales->file, scales});
    extents.push_back({block.piece->extent.file, band});
  }
  return extents;
}

std::uint64_t row_value_bytes(Model const& model, RowExchangePlan const& plan, RowBlock const& block,
                              std::size_t from) {
  auto const& parameter = model.parameters[block.piece->parameter];
  auto const places = plan.group.size();
  return band_of(block, from, places).size() * (parameter.row_count() / places) * parameter.unit_bytes(Form::native);
}

RowTraffic row_traffic(Model const& model, RowExchangePlan const& plan) {
  RowTraffic traffic;
  for (auto const& block : plan.blocks) {
    add_block(traffic, model, model.tensors[block.piece->tensor], block.rows, plan.place, plan.group.size());
  }
  return traffic;
}

std::vector<RowTraffic> row_traffic(Model const& model, Form storage_form, Mesh const& mesh) {
  auto const places = static_cast<std::size_t>(mesh.ep_shard);
  std::map<std::uint64_t, std::vector<RowTraffic>> of_one;  // expert of all tensors with so many, by place
  for (auto const& parameter : model.parameters) {
    if (!exchanges_rows(parameter, storage_form, mesh)) continue;
    auto& by_place = of_one[parameter.part_count()];
    by_place.resize(places);
    for (std::size_t place = 0; place < places; ++place) {
      by_place[place] = by_place[place] + traffic_of_expert(model, parameter, place, places);
    }
  }
  std::vector<RowTraffic> ranks(static_cast<std::size_t>(mesh.ranks()));
  for (int rank = 0; rank < mesh.ranks(); ++rank) {
    auto const at = mesh.coordinate(rank);
    auto& traffic = ranks[static_cast<std::size_t>(rank)];
    for (auto const& [experts, by_place] : of_one) {
      auto const held =
          balanced_part(experts, static_cast<std::uint64_t>(mesh.ep), static_cast<std::uint64_t>(at.ep)).size();
      traffic = traffic + by_place[static_cast<std::size_t>(at.ep_shard)] * held;
    }
  }
  return ranks;
}

}  // namespace rankslice

#include "facts/plan_facts.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "core/block_scales.hpp"
#include "facts/model_facts.hpp"
#include "plan/dense_shares.hpp"
#include "plan/gather_plan.hpp"
#include "plan/plan.hpp"
#include "plan/row_exchange_plan.hpp"
#include "verify/traffic.hpp"

namespace rankslice {

namespace {

/// The experts of a coordinate, as the first stacked tensor has them.
Range experts_of(Checkpoint const& source, Mesh const& mesh, MeshCoordinate const& at) {
  auto const& parameters = source.model.parameters;
  auto const found = std::ranges::find(parameters, true, &Parameter::stacked_experts);
  if (found == parameters.end()) return {};
  return balanced_part(found->part_count(), static_cast<std::uint64_t>(mesh.ep), static_cast<std::uint64_t>(at.ep));
}

/// What verifying a load passes between ranks, for each of them.
Json traffic_json(Model const& model, int ranks) {
  Json levels;
  for (auto const level : {VerifyLevel::coverage, VerifyLevel::full, VerifyLevel::reread}) {
    auto const traffic = verify_traffic(model, level);
    levels[std::string(name(level))] = {{"summed_bytes", traffic.summed},
                                        {"sent_bytes", ranks > 1 ? traffic.sent : 0},
                                        {"wire_bytes_per_rank", traffic.wire_bytes(ranks)}};
  }
  return levels;
}

/// The most that any rank sends and receives when a loaded state is gathered along a route.
Json most_of_any_rank(Model const& model, GatherOwners const& owners, GatherRoute const& route) {
  std::vector<PlannedSlice> travelling;
  for (std::uint32_t i = 0; i < model.parameters.size(); ++i) {
    if (model.parameters[i].stacked_experts) travelling.push_back({i, model.parameters[i].whole()});
  }
  GatherTraffic most;
  for (auto const& rank : gather_traffic(model, plan_gather(model, travelling, owners), route)) {
    most.sent = std::max(most.sent, rank.sent);
    most.received = std::max(most.received, rank.received);
  }
  return {{"sent_bytes", most.sent}, {"received_bytes", most.received}};
}

/// What each rank sends and receives when a checkpoint that all ranks read is exported by rank 0 alone.
Json gather_of_checkpoint(Model const& model, int ranks) {
  auto const all = make_save_plan(model, {.mesh = make_mesh(1)}, 0);
  auto const plan =
      plan_gather(model, all, {.holdings = {.mesh = make_mesh(ranks)}, .dense_everywhere = false, .receiver = 0});
  Json each = Json::array();
  for (auto const& rank : gather_traffic(model, plan, route_to(0, ranks))) {
    each.push_back({{"rank", each.size()}, {"bytes_sent", rank.sent}, {"bytes_received", rank.received}});
  }
  return {{"rank", each}};
}

/// What gathering passes between ranks. Which of them share a host no plan can know.
Json gather_json(Model const& model, Mesh const& mesh) {
  constexpr int kRanksPerHost = 8;
  std::vector<int> first_ranks;
  for (int rank = 0; rank < mesh.ranks(); ++rank) first_ranks.push_back(rank / kRanksPerHost * kRanksPerHost);
  auto to_hosts = most_of_any_rank(model, {.holdings = {.mesh = mesh}}, route_to_hosts(first_ranks));
  to_hosts["ranks_per_host"] = kRanksPerHost;
  return {{"to_one", most_of_any_rank(model, {.holdings = {.mesh = mesh}, .receiver = 0}, route_to(0, mesh.ranks()))},
          {"to_hosts", to_hosts},
          {"to_all", most_of_any_rank(model, {.holdings = {.mesh = mesh}}, route_to_all(mesh.ranks()))},
          {"of_checkpoint", gather_of_checkpoint(model, mesh.ranks())}};
}

/// What the ranks of each group pass to one another of the short rows that they share, when they read them so.
std::vector<RowTraffic> rows_traffic(Checkpoint const& source, Mesh const& mesh, DenseReading dense) {
  auto ranks = row_traffic(source.model, source.storage.form, mesh);
  if (dense == DenseReading::once) return ranks;
  for (auto& bytes : ranks) {
    bytes.read = bytes.read_alone;
    bytes.sent = bytes.received = 0;
  }
  return ranks;
}

/// Of each rank its place, its experts and its bytes.
Json list_ranks(Checkpoint const& source, Mesh const& mesh, DenseReading dense) {
  auto const ranks = plan_all_ranks(source.model, source.storage.form, mesh);
  auto const dense_bytes = dense_traffic(source.model, source.storage.form, mesh, dense);
  auto const rows = rows_traffic(source, mesh, dense);
  auto const all_dense = dense_traffic(source.model, source.storage.form, mesh, DenseReading::each_rank);
  auto list = Json::array();
  for (int rank = 0; rank < mesh.ranks(); ++rank) {
    auto const at = mesh.coordinate(rank);
    auto const experts = experts_of(source, mesh, at);
    auto const index = static_cast<std::size_t>(rank);
    auto const& bytes = ranks[index];
    auto const read_by_others = all_dense[index].read - dense_bytes[index].read;
    auto wanted = bytes.wanted - read_by_others;
    if (dense == DenseReading::once) wanted = wanted - rows[index].wanted_alone + rows[index].read;
    list.push_back({{"rank", rank},
                    {"ep_replicate", at.ep_replicate},
                    {"ep_shard", at.ep_shard},
                    {"ep", at.ep},
                    {"experts", {experts.begin, experts.end}},
                    {"bytes_wanted", wanted},
                    {"bytes_read", bytes.read - read_by_others - rows[index].read_alone + rows[index].read},
                    {"bytes_owned", bytes.owned}});
  }
  return list;
}

/// Of dense tensors what each rank reads, and passes on.
Json dense_json(Checkpoint const& source, Mesh const& mesh, DenseReading dense) {
  auto list = Json::array();
  for (auto const& bytes : dense_traffic(source.model, source.storage.form, mesh, dense)) {
    list.push_back({{"rank", list.size()},
                    {"bytes_read", bytes.read},
                    {"bytes_sent", bytes.sent},
                    {"bytes_received", bytes.received}});
  }
  auto const reading = dense == DenseReading::once ? dense : DenseReading::each_rank;
  return {{"reading", name(reading)}, {"rank", list}};
}

/// The same of short rows of experts that ranks share.
Json rows_json(Checkpoint const& source, Mesh const& mesh, DenseReading dense) {
  auto list = Json::array();
  for (auto const& bytes : rows_traffic(source, mesh, dense)) {
    list.push_back({{"rank", list.size()},
                    {"bytes_read", bytes.read},
                    {"bytes_sent", bytes.sent},
                    {"bytes_received", bytes.received}});
  }
  auto const reading = dense == DenseReading::once ? dense : DenseReading::each_rank;
  return {{"reading", name(reading)}, {"rank", list}};
}

std::uint64_t sum_of(Json const& ranks, char const* what) {
  std::uint64_t sum = 0;
  for (auto const& rank : ranks) sum += rank[what].get<std::uint64_t>();
  return sum;
}

/// A range of a file that a rank reads of a parameter, or of block scales of it.
struct FileRead {
  Parameter const& parameter;
  std::string const& file;
  std::string const& hf_key;
  Range bytes;
  Slice slice;
  bool is_scales = false;
};

void add_read(std::vector<FileRead>& reads, Checkpoint const& source, LocatedSlice const& located, Range bytes) {
  auto const& [model, storage] = std::tie(source.model, source.storage);
  auto const& piece = *located.piece;
  auto const& parameter = model.parameters[piece.parameter];
  auto const& key = storage.form == Form::hf ? model.tensors[piece.tensor].key : model.key_of(parameter);
  if (bytes.empty()) return;
  reads.push_back({parameter, storage.files[piece.extent.file].name, key, bytes, located.slice});
}

void add_scales(std::vector<FileRead>& reads, Checkpoint const& source, LocatedSlice const& located) {
  auto const& [model, storage] = std::tie(source.model, source.storage);
  auto const& piece = *located.piece;
  auto const bytes = scale_range(model, piece, located.slice);
  if (bytes.empty()) return;
  reads.push_back({model.parameters[piece.parameter], storage.files[piece.scales->file].name,
                   model.tensors[*model.tensors[piece.tensor].scales].key, bytes, located.slice, true});
}

LoadPlan plan_one(Checkpoint const& source, Mesh const& mesh, DenseReading dense, int rank) {
  return make_load_plan(source.model, source.storage.form, mesh, rank, dense);
}

std::vector<FileRead> file_reads(Checkpoint const& source, Mesh const& mesh, DenseReading dense, int rank) {
  std::vector<FileRead> reads;
  auto const& [model, storage] = std::tie(source.model, source.storage);
  for (auto const& wanted : plan_one(source, mesh, dense, rank).slices) {
    for (auto const& located : locate(storage, model, wanted)) {
      for (auto const& bytes : read_ranges(model, storage.form, located)) add_read(reads, source, located, bytes);
      add_scales(reads, source, located);
    }
  }
  if (dense != DenseReading::once) return reads;
  auto const exchange = plan_row_exchange(storage, model, {.mesh = mesh}, rank);
  for (auto const& block : exchange.blocks) {
    auto const rows = model.parameters[block.piece->parameter].row_count();
    LocatedSlice const located{block.piece, {.part = {block.expert, block.expert + 1}, .rows = {0, rows}}};
    auto const band = band_of(block, exchange.place, exchange.group.size());
    add_read(reads, source, located, bytes_of(model, block, band));
    if (block.rows.begin == 0 && !band.empty()) add_scales(reads, source, located);
  }
  return reads;
}

Json describe(LoadDestination const& tensor) {
  return {{"key", tensor.key},
          {"dtype", name(tensor.dtype)},
          {"shape", tensor.shape},
          {"offsets", tensor.offsets},
          {"local_shape", tensor.local_shape},
          {"fqn", tensor.fqn},
          {"experts", {tensor.experts.begin, tensor.experts.end}},
          {"columns", {tensor.columns.begin, tensor.columns.end}},
          {"is_scales", tensor.is_scales}};
}

/// For people: what reading them once passes between ranks.
std::string line_of_dense(Checkpoint const& source, Mesh const& mesh) {
  std::uint64_t read = 0;
  DenseTraffic most;
  for (auto const& bytes : dense_traffic(source.model, source.storage.form, mesh, DenseReading::once)) {
    read += bytes.read;
    most.sent = std::max(most.sent, bytes.sent);
    most.received = std::max(most.received, bytes.received);
  }
  return fmt::format("dense tensors: {} bytes, read once; a rank sends up to {} and receives up to {}\n", read,
                     most.sent, most.received);
}

/// … and of the rows of experts; nothing where none are exchanged.
std::string line_of_rows(Checkpoint const& source, Mesh const& mesh) {
  RowTraffic all, most;
  for (auto const& bytes : row_traffic(source.model, source.storage.form, mesh)) {
    all.read += bytes.read;
    most.sent = std::max(most.sent, bytes.sent);
    most.received = std::max(most.received, bytes.received);
  }
  if (all.read == 0) return {};
  return fmt::format(
      "rows of shared experts: {} bytes, read once by each group; a rank sends up to {} and receives up to {}\n",
      all.read, most.sent, most.received);
}

/// How every plan begins.
Json begin_plan(Checkpoint const& source, Mesh const& mesh, std::string_view command) {
  return {{"schema", "rankslice.plan/1"},
          {"command", command},
          {"family", source.family},
          {"ranks", mesh.ranks()},
          {"mesh", mesh_json(mesh)}};
}

}  // namespace

Json mesh_json(Mesh const& mesh) {
  return {{"ep_replicate", mesh.ep_replicate}, {"ep_shard", mesh.ep_shard}, {"ep", mesh.ep}};
}

Json plan_of_all_ranks(Checkpoint const& source, Mesh const& mesh, DenseReading dense, bool asked_for_dtype,
                       std::string_view command) {
  auto const ranks = list_ranks(source, mesh, dense);
  auto plan = begin_plan(source, mesh, command);
  plan["quantisation"] = summarize_quantisation(source);
  plan["conversions"] = summarize_conversions(source, asked_for_dtype);
  plan["rank"] = ranks;
  plan["bytes"] = {{"wanted", sum_of(ranks, "bytes_wanted")},
                   {"read", sum_of(ranks, "bytes_read")},
                   {"owned", sum_of(ranks, "bytes_owned")}};
  plan["dense"] = dense_json(source, mesh, dense);
  plan["rows"] = rows_json(source, mesh, dense);
  plan["verify"] = traffic_json(source.model, mesh.ranks());
  plan["gather"] = gather_json(source.model, mesh);
  return plan;
}

std::string table_of_all_ranks(Checkpoint const& source, Mesh const& mesh, DenseReading dense, bool asked_for_dtype) {
  auto text = fmt::format("mesh: ep_replicate {} × ep_shard {} × ep {}\n", mesh.ep_replicate, mesh.ep_shard, mesh.ep);
  for (auto const& line : value_lines(summarize_conversions(source, asked_for_dtype))) {
    text += fmt::format("values: {}\n", line);
  }
  if (dense == DenseReading::once) text += line_of_dense(source, mesh) + line_of_rows(source, mesh);
  auto const add = [&](auto const&... cells) {
    text += fmt::format("{:>5}  {:>12}  {:>8}  {:>12}  {:>16}  {:>16}  {:>16}\n", cells...);
  };
  add("rank", "ep_replicate", "ep_shard", "experts", "bytes wanted", "bytes read", "bytes held");
  auto const ranks = list_ranks(source, mesh, dense);
  for (auto const& rank : ranks) {
    auto const number = [&](char const* what) { return rank[what].get<std::uint64_t>(); };
    auto const& experts = rank["experts"];
    auto const range = fmt::format("[{}, {})", experts[0].get<std::uint64_t>(), experts[1].get<std::uint64_t>());
    add(number("rank"), number("ep_replicate"), number("ep_shard"), range, number("bytes_wanted"), number("bytes_read"),
        number("bytes_owned"));
  }
  add("all", "", "", "", sum_of(ranks, "bytes_wanted"), sum_of(ranks, "bytes_read"), sum_of(ranks, "bytes_owned"));
  return text;
}

Json plan_of_rank(Checkpoint const& source, Mesh const& mesh, DenseReading dense, int rank, std::string_view command) {
  auto const planned = plan_one(source, mesh, dense, rank);
  auto list = Json::array();
  for (auto const& [parameter, file, hf_key, bytes, slice, is_scales] : file_reads(source, mesh, dense, rank)) {
    Json item{{"fqn", parameter.fqn}, {"hf_key", hf_key}, {"file", file}, {"bytes", {bytes.begin, bytes.end}}};
    if (parameter.stacked_experts) {
      item["experts"] = {slice.part.begin, slice.part.end};
      item["rows"] = {slice.rows.begin, slice.rows.end};
    }
    list.push_back(std::move(item));
  }
  auto plan = begin_plan(source, mesh, command);
  plan["rank"] = rank;
  plan["reads"] = std::move(list);
  plan["bytes"] = {{"wanted", planned.bytes_wanted}, {"read", planned.bytes_read}, {"owned", planned.bytes_owned}};
  return plan;
}

std::string lines_of_rank(Checkpoint const& source, Mesh const& mesh, DenseReading dense, int rank) {
  std::string text;
  for (auto const& [parameter, file, hf_key, bytes, slice, is_scales] : file_reads(source, mesh, dense, rank)) {
    auto const wanted = parameter.stacked_experts
                            ? fmt::format("  experts [{}, {}), rows [{}, {}) of {}", slice.part.begin, slice.part.end,
                                          slice.rows.begin, slice.rows.end, parameter.row_count())
                            : std::string();
    text += fmt::format("{}  [{}, {})  {}{}{}\n", file, bytes.begin, bytes.end, parameter.fqn, wanted,
                        is_scales ? "  block scales" : "");
  }
  return text;
}

Json plan_of_keys(Checkpoint const& source, Mesh const& mesh, int rank, KeySelection const& keys,
                  std::string_view command) {
  auto const destinations = load_destinations(source, {.forms = {.decoder_experts = ExpertKeys::split_fp8},
                                                       .mesh = mesh,
                                                       .coordinate = mesh.coordinate(rank),
                                                       .quantization = true,
                                                       .keys = keys});
  auto list = Json::array();
  for (auto const& tensor : destinations) list.push_back(describe(tensor));
  auto plan = begin_plan(source, mesh, command);
  plan["rank"] = rank;
  plan["quantization"] = true;
  plan["keys"] = std::move(list);
  return plan;
}

std::string lines_of_keys(Json const& plan) {
  std::string text;
  for (auto const& key : plan["keys"]) {
    text += fmt::format("{}  {}  {}\n", key["key"].get<std::string>(), key["dtype"].get<std::string>(),
                        to_string(key["shape"].get<Shape>()));
  }
  return text;
}

}  // namespace rankslice

#include "cli/listing.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "cli/model_facts.hpp"
#include "core/block_scales.hpp"
#include "plan/gather_plan.hpp"
#include "plan/plan.hpp"
#include "verify/traffic.hpp"

namespace rankslice::cli {

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

/// What gathering passes between ranks. Which of them share a host no plan can know.
Json gather_json(Model const& model, Mesh const& mesh) {
  constexpr int kRanksPerHost = 8;
  std::vector<int> first_ranks;
  for (int rank = 0; rank < mesh.ranks(); ++rank) first_ranks.push_back(rank / kRanksPerHost * kRanksPerHost);
  auto to_hosts = most_of_any_rank(model, {.mesh = mesh}, route_to_hosts(first_ranks));
  to_hosts["ranks_per_host"] = kRanksPerHost;
  return {{"to_one", most_of_any_rank(model, {.mesh = mesh, .receiver = 0}, route_to(0, mesh.ranks()))},
          {"to_hosts", to_hosts},
          {"to_all", most_of_any_rank(model, {.mesh = mesh}, route_to_all(mesh.ranks()))}};
}

void list_all(Job const& job, Checkpoint const& source, Mesh const& mesh) {
  auto const ranks = plan_all_ranks(source.model, source.storage.form, mesh);
  auto const conversions = summarize_conversions(source, job.options.open_dtype().has_value());
  auto list = Json::array();
  auto const line = [](auto const&... cells) {
    print_data(fmt::format("{:>5}  {:>12}  {:>8}  {:>12}  {:>16}  {:>16}  {:>16}\n", cells...));
  };
  if (!job.options.json) {
    print_data(fmt::format("mesh: ep_replicate {} × ep_shard {} × ep {}\n", mesh.ep_replicate, mesh.ep_shard, mesh.ep));
    for (auto const& values : value_lines(conversions)) print_data(fmt::format("values: {}\n", values));
    line("rank", "ep_replicate", "ep_shard", "experts", "bytes wanted", "bytes read", "bytes held");
  }
  RankBytes all;
  for (int rank = 0; rank < mesh.ranks(); ++rank) {
    auto const at = mesh.coordinate(rank);
    auto const experts = experts_of(source, mesh, at);
    auto const& bytes = ranks[static_cast<std::size_t>(rank)];
    all.wanted += bytes.wanted;
    all.read += bytes.read;
    all.owned += bytes.owned;
    if (job.options.json) {
      list.push_back({{"rank", rank},
                      {"ep_replicate", at.ep_replicate},
                      {"ep_shard", at.ep_shard},
                      {"ep", at.ep},
                      {"experts", {experts.begin, experts.end}},
                      {"bytes_wanted", bytes.wanted},
                      {"bytes_read", bytes.read},
                      {"bytes_owned", bytes.owned}});
    } else {
      line(rank, at.ep_replicate, at.ep_shard, fmt::format("[{}, {})", experts.begin, experts.end), bytes.wanted,
           bytes.read, bytes.owned);
    }
  }
  if (!job.options.json) return line("all", "", "", "", all.wanted, all.read, all.owned);
  Json const document{{"schema", "rankslice.plan/1"},
                      {"command", job.options.command},
                      {"family", source.family},
                      {"ranks", mesh.ranks()},
                      {"mesh", mesh_json(mesh)},
                      {"quantisation", summarize_quantisation(source)},
                      {"conversions", conversions},
                      {"rank", list},
                      {"bytes", {{"wanted", all.wanted}, {"read", all.read}, {"owned", all.owned}}},
                      {"verify", traffic_json(source.model, mesh.ranks())},
                      {"gather", gather_json(source.model, mesh)}};
  print_data(document.dump(2) + "\n");
}

/// One line, or one JSON object, for a range of a file that a rank reads of a parameter, or of block scales of it.
void list_range(Job const& job, Checkpoint const& source, LocatedSlice const& located, Extent const& extent,
                std::string const& key, bool is_scales, Json& list) {
  auto const& parameter = source.model.parameters[located.piece->parameter];
  auto const& file = source.storage.files[extent.file].name;
  auto const& slice = located.slice;
  auto const& bytes = extent.bytes;
  if (job.options.json) {
    Json item{{"fqn", parameter.fqn}, {"hf_key", key}, {"file", file}, {"bytes", {bytes.begin, bytes.end}}};
    if (parameter.stacked_experts) {
      item["experts"] = {slice.part.begin, slice.part.end};
      item["rows"] = {slice.rows.begin, slice.rows.end};
    }
    return list.push_back(std::move(item));
  }
  auto const wanted = parameter.stacked_experts
                          ? fmt::format("  experts [{}, {}), rows [{}, {}) of {}", slice.part.begin, slice.part.end,
                                        slice.rows.begin, slice.rows.end, parameter.row_count())
                          : std::string();
  print_data(fmt::format("{}  [{}, {})  {}{}{}\n", file, bytes.begin, bytes.end, parameter.fqn, wanted,
                         is_scales ? "  block scales" : ""));
}

void list_reads(Job const& job, Checkpoint const& source, LocatedSlice const& located, Json& list) {
  auto const& model = source.model;
  auto const& piece = *located.piece;
  auto const in_hf = source.storage.form == Form::hf;
  auto const& key = in_hf ? model.tensors[piece.tensor].key : model.key_of(model.parameters[piece.parameter]);
  for (auto const& bytes : read_ranges(model, source.storage.form, located)) {
    list_range(job, source, located, {.file = piece.extent.file, .bytes = bytes}, key, false, list);
  }
  auto const scales = scale_range(model, *located.piece, located.slice);
  if (scales.empty()) return;
  list_range(job, source, located, {.file = piece.scales->file, .bytes = scales},
             model.tensors[*model.tensors[piece.tensor].scales].key, true, list);
}

void list_rank(Job const& job, Checkpoint const& source, Mesh const& mesh, int rank) {
  auto const planned = make_load_plan(source.model, source.storage.form, mesh, mesh.coordinate(rank));
  auto list = Json::array();
  for (auto const& wanted : planned.slices) {
    for (auto const& located : locate(source.storage, source.model, wanted)) list_reads(job, source, located, list);
  }
  if (!job.options.json) return;
  Json const document{
      {"schema", "rankslice.plan/1"},
      {"command", job.options.command},
      {"family", source.family},
      {"ranks", mesh.ranks()},
      {"mesh", mesh_json(mesh)},
      {"rank", rank},
      {"reads", list},
      {"bytes", {{"wanted", planned.bytes_wanted}, {"read", planned.bytes_read}, {"owned", planned.bytes_owned}}}};
  print_data(document.dump(2) + "\n");
}

}  // namespace

Json mesh_json(Mesh const& mesh) {
  return {{"ep_replicate", mesh.ep_replicate}, {"ep_shard", mesh.ep_shard}, {"ep", mesh.ep}};
}

void list_plan(Job& job, Checkpoint const& source, Mesh const& mesh) {
  job.listed = true;
  if (job.world.rank() != 0) return;
  job.options.rank ? list_rank(job, source, mesh, *job.options.rank) : list_all(job, source, mesh);
}

std::string describe(VerifyReport const& verified, double seconds) {
  if (verified.level == VerifyLevel::off) return "verify   off";
  auto const what = fmt::format("verify   {:.2f} s  {}, {}", seconds, counted(verified.tensors, "tensor"),
                                counted(verified.experts, "expert block"));
  if (verified.level == VerifyLevel::coverage) return what + ": all there; no bytes compared (--verify coverage)";
  return fmt::format("{}: no difference; reference: {}{}{}", what, verified.reference,
                     verified.reread ? "; " + describe(*verified.reread) : "",
                     verified.without_codes ? "; codes and scales not compared" : "");
}

std::string describe(Reread const& reread) {
  return fmt::format(
      "{} read again by {} on {}{}", human_bytes(reread.bytes), reread.another_rank ? "another rank" : "the same rank",
      reread.another_host ? "another host" : "the same host", reread.past_page_cache ? ", past the page cache" : "");
}

void throw_if_bad(Communicator& world, VerifyReport const& verified) {
  on_every_rank(world, [&] { verified.throw_if_bad(); });
}

std::string counted(std::uint64_t n, std::string const& singular) {
  return fmt::format("{} {}{}", n, singular, n == 1 ? "" : "s");
}

}  // namespace rankslice::cli

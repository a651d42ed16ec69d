#include "cli/listing.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "plan/plan.hpp"

namespace rankslice::cli {

namespace {

/// The experts of a coordinate, as the first stacked tensor has them.
Range experts_of(Checkpoint const& source, Mesh const& mesh, MeshCoordinate const& at) {
  auto const found = std::ranges::find(source.parameters, true, &Parameter::stacked_experts);
  if (found == source.parameters.end()) return {};
  return balanced_part(found->hf_shape[0], static_cast<std::uint64_t>(mesh.ep), static_cast<std::uint64_t>(at.ep));
}

Json mesh_json(Mesh const& mesh) {
  return {{"ep_replicate", mesh.ep_replicate}, {"ep_shard", mesh.ep_shard}, {"ep", mesh.ep}};
}

void list_all(Job const& job, Checkpoint const& source, Mesh const& mesh) {
  auto const ranks = plan_all_ranks(source.parameters, source.storage.form, mesh);
  auto list = Json::array();
  if (!job.options.json) {
    print_data(fmt::format("mesh: ep_replicate {} × ep_shard {} × ep {}\n", mesh.ep_replicate, mesh.ep_shard, mesh.ep));
    print_data(fmt::format("{:>5}  {:>12}  {:>12}  {:>16}  {:>16}\n", "rank", "ep_replicate", "experts", "bytes read",
                           "bytes held"));
  }
  std::uint64_t read = 0, owned = 0;
  for (int rank = 0; rank < mesh.ranks(); ++rank) {
    auto const at = mesh.coordinate(rank);
    auto const experts = experts_of(source, mesh, at);
    auto const& bytes = ranks[static_cast<std::size_t>(rank)];
    read += bytes.read;
    owned += bytes.owned;
    if (job.options.json) {
      list.push_back({{"rank", rank},
                      {"ep_replicate", at.ep_replicate},
                      {"ep_shard", at.ep_shard},
                      {"ep", at.ep},
                      {"experts", {experts.begin, experts.end}},
                      {"bytes_read", bytes.read},
                      {"bytes_owned", bytes.owned}});
    } else {
      print_data(fmt::format("{:>5}  {:>12}  {:>12}  {:>16}  {:>16}\n", rank, at.ep_replicate,
                             fmt::format("[{}, {})", experts.begin, experts.end), bytes.read, bytes.owned));
    }
  }
  if (!job.options.json) {
    print_data(fmt::format("{:>5}  {:>12}  {:>12}  {:>16}  {:>16}\n", "all", "", "", read, owned));
    return;
  }
  Json const document{{"schema", "rankslice.plan/1"},
                      {"command", job.options.command},
                      {"family", source.family},
                      {"ranks", mesh.ranks()},
                      {"mesh", mesh_json(mesh)},
                      {"rank", list},
                      {"bytes", {{"read", read}, {"owned", owned}}}};
  print_data(document.dump(2) + "\n");
}

void list_rank(Job const& job, Checkpoint const& source, Mesh const& mesh, int rank) {
  auto const planned = make_load_plan(source.parameters, source.storage.form, mesh, mesh.coordinate(rank));
  auto list = Json::array();
  for (auto const& part : planned.parts) {
    auto const& parameter = source.parameters[part.parameter];
    for (auto const& located : locate(source.storage, source.parameters, part)) {
      auto const& file = source.storage.files[located.extent.file].name;
      auto const& bytes = located.extent.bytes;
      if (job.options.json) {
        Json item{
            {"fqn", parameter.fqn}, {"hf_key", parameter.hf_key}, {"file", file}, {"bytes", {bytes.begin, bytes.end}}};
        if (parameter.stacked_experts) item["experts"] = {located.part.begin, located.part.end};
        list.push_back(std::move(item));
      } else {
        auto const experts = parameter.stacked_experts
                                 ? fmt::format("  experts [{}, {})", located.part.begin, located.part.end)
                                 : std::string();
        print_data(fmt::format("{}  [{}, {})  {}{}\n", file, bytes.begin, bytes.end, parameter.fqn, experts));
      }
    }
  }
  if (!job.options.json) return;
  Json const document{{"schema", "rankslice.plan/1"},
                      {"command", job.options.command},
                      {"family", source.family},
                      {"ranks", mesh.ranks()},
                      {"mesh", mesh_json(mesh)},
                      {"rank", rank},
                      {"reads", list},
                      {"bytes", {{"read", planned.bytes_read}, {"owned", planned.bytes_owned}}}};
  print_data(document.dump(2) + "\n");
}

}  // namespace

void list_plan(Job& job, Checkpoint const& source, Mesh const& mesh) {
  job.listed = true;
  if (job.world.rank() != 0) return;
  job.options.rank ? list_rank(job, source, mesh, *job.options.rank) : list_all(job, source, mesh);
}

std::string describe(VerifyReport const& verified, double seconds) {
  if (verified.level == VerifyLevel::off) return "verify   off";
  return fmt::format("verify   {:.2f} s  {}, {}: no difference; reference: {}", seconds,
                     counted(verified.tensors, "tensor"), counted(verified.experts, "expert block"),
                     verified.reference);
}

void throw_if_bad(Communicator& world, VerifyReport const& verified) {
  on_every_rank(world, [&] { verified.throw_if_bad(); });
}

std::string counted(std::uint64_t n, std::string const& singular) {
  return fmt::format("{} {}{}", n, singular, n == 1 ? "" : "s");
}

}  // namespace rankslice::cli

#include <fmt/format.h>

#include "rankslice/hf_keys.hpp"

#include "cli/commands.hpp"
#include "cli/listing.hpp"

namespace rankslice::cli {

namespace {

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

/// The keys of a block-FP8 checkpoint of the same model that one rank fills its tensors from, of which patterns judge
/// each by itself.
void list_keys(Job& job, Mesh const& mesh) {
  auto const source = job.open_input();
  job.listed = true;
  if (job.world.rank() != 0) return;
  auto const rank = job.options.rank.value_or(0);
  auto const destinations = load_destinations(*source, {.forms = {.decoder_experts = ExpertKeys::split_fp8},
                                                        .mesh = mesh,
                                                        .coordinate = mesh.coordinate(rank),
                                                        .quantization = true,
                                                        .keys = job.keys()});
  if (!job.options.json) {
    std::string lines;
    for (auto const& tensor : destinations) {
      lines += fmt::format("{}  {}  {}\n", tensor.key, name(tensor.dtype), to_string(tensor.shape));
    }
    return print_data(lines);
  }
  auto list = Json::array();
  for (auto const& tensor : destinations) list.push_back(describe(tensor));
  Json const document{{"schema", "rankslice.plan/1"}, {"command", job.options.command},
                      {"family", source->family},     {"ranks", mesh.ranks()},
                      {"mesh", mesh_json(mesh)},      {"rank", rank},
                      {"quantization", true},         {"keys", list}};
  print_data(document.dump(2) + "\n");
}

}  // namespace

void plan(Job& job) {
  auto const mesh = make_mesh(*job.options.ranks, job.options.ep, job.options.ep_shard);
  if (job.options.quantization) return list_keys(job, mesh);
  list_plan(job, *job.open_selected(), mesh);
}

}  // namespace rankslice::cli

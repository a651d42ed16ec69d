#include "cli/commands.hpp"
#include "cli/listing.hpp"
#include "facts/plan_facts.hpp"

namespace rankslice::cli {

namespace {

void list_keys(Job& job, Mesh const& mesh) {
  auto const source = job.open_input();
  job.listed = true;
  if (job.world.rank() != 0) return;
  auto const planned = plan_of_keys(*source, mesh, job.options.rank.value_or(0), job.keys(), job.options.command);
  print_data(job.options.json ? json_text(planned) : lines_of_keys(planned));
}

}  // namespace

void plan(Job& job) {
  auto const mesh = make_mesh(*job.options.ranks, job.options.ep, job.options.ep_shard);
  if (job.options.quantization) return list_keys(job, mesh);
  list_plan(job, *job.open_selected(), mesh, job.options.dense_reading());
}

}  // namespace rankslice::cli

#include "cli/commands.hpp"
#include "cli/listing.hpp"

namespace rankslice::cli {

void plan(Job& job) {
  auto const mesh = make_mesh(*job.options.ranks, job.options.ep, job.options.ep_shard);
  list_plan(job, *job.open_selected(), mesh);
}

}  // namespace rankslice::cli

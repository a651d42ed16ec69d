#include "cli/commands.hpp"
#include "facts/inspection.hpp"

namespace rankslice::cli {

namespace {

void print(Job& job, Json const& summary) {
  job.listed = true;
  print_data(job.options.json ? json_text(summary) : inspection_text(summary));
}

}  // namespace

void inspect(Job& job) {
  std::shared_ptr<Checkpoint const> checkpoint;
  try {
    checkpoint = open_checkpoint(job.options.input, job.world, job.open_options());
  } catch (Error const& error) {
    if (auto const known = summarize_unmapped(job.options.input, job.open_options(), error)) print(job, *known);
    throw;
  }
  auto const selected = select_tensors(checkpoint, job.keys());
  print(job, summarize_checkpoint(*selected, job.options.open_dtype().has_value()));
}

}  // namespace rankslice::cli

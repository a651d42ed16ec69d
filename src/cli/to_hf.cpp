#include "rankslice/to_hf.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "cli/commands.hpp"
#include "cli/listing.hpp"
#include "hf_target.hpp"

namespace rankslice::cli {

void to_hf(Job& job) {
  auto const& options = job.options;
  job.expect_free(options.output, StagedOutput::Kind::folder, options.overwrite);
  auto const checkpoint = job.open_input();
  on_every_rank(job.world, [&] {
    if (options.source.empty() || checkpoint->format == CheckpointFormat::shards) return;
    throw UsageError("--source goes with a folder of shards; " + options.input + " brings its own headers");
  });
  job.report_mesh(make_mesh(job.world.size()));
  job.report_selection(*checkpoint);
  std::vector<bool> taken;
  on_every_rank(job.world, [&] { taken = taken_tensors(checkpoint->model, job.keys()); });
  if (options.dry_run) {
    auto const target = make_target(*checkpoint, taken);
    job.report_headers(target.hf.headers);
    job.console.say(fmt::format("to-hf would write {} and {} to {}", counted(target.hf.files.size(), "file"),
                                counted(target.hf.side_files.size(), "side file"), options.output));
    return;
  }
  job.report["verify"]["level"] = options.verify;
  ExportReport exported;
  ExportOptions const save{.overwrite = options.overwrite, .keys = job.keys(), .call = job.call()};
  auto const seconds = job.timed("to_hf", [&] {
    exported = rankslice::to_hf(*checkpoint, options.output, job.world, save, options.verify_level());
  });
  job.report_headers(exported.headers);
  job.report_ranks({.wanted = exported.bytes_read, .read = exported.bytes_read}, 0);
  std::vector<std::uint64_t> written{exported.bytes_written};
  job.world.all_reduce(written, Reduce::sum);
  job.report["bytes"]["written"] = written.front();
  VerifyReport verified;  // an export that differs is an error, so there is nothing else to report
  verified.level = options.verify_level();
  verified.reference = checkpoint->digests && verified.level == VerifyLevel::full ? "store" : "none";
  for (auto const& parameter : checkpoint->model.parameters) {
    if (std::ranges::none_of(parameter.tensors, [&](std::uint32_t tensor) { return taken[tensor]; })) continue;
    ++verified.tensors;
    if (parameter.stacked_experts) verified.experts += parameter.part_count();
  }
  job.report_verify(verified);
  for (auto const& name : checkpoint->hf.left_out) job.console.detail("left out by the source: " + name);
  job.console.say(fmt::format("to-hf    {:.2f} s  {}: {} and {}, read back", seconds, options.output,
                              counted(exported.files, "file"), counted(checkpoint->hf.side_files.size(), "side file")));
}

}  // namespace rankslice::cli

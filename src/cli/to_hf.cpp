#include "rankslice/to_hf.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "cli/commands.hpp"
#include "cli/listing.hpp"
#include "export_plan.hpp"

namespace rankslice::cli {

namespace {

ExportOptions export_options(Job& job) {
  auto const& options = job.options;
  return {.overwrite = options.overwrite,
          .keys = job.keys(),
          .layout = options.export_layout == "source" ? ExportLayout::source : ExportLayout::automatic,
          .gdn_dtype = options.gdn_dtype == "upstream" ? GdnDtype::upstream : GdnDtype::preserve,
          .gather = options.gather,
          .resume = options.resumes(),
          .call = job.call()};
}

void check_source(Options const& options, Checkpoint const& checkpoint) {
  if (options.source.empty() || checkpoint.format == CheckpointFormat::shards) return;
  if (checkpoint.format == CheckpointFormat::store && options.export_layout == "source") return;
  throw UsageError("--source goes with a folder of shards, or a store and --export-layout source; " + options.input +
                   " brings its own headers");
}

/// The checkpoint to copy from: that of `--source`, or what shards say that they are of. Null: the input. Collective.
std::shared_ptr<Checkpoint const> open_copied(Job& job, Checkpoint const& input) {
  auto const of_shards = input.format == CheckpointFormat::shards ? input.source : std::string();
  auto const path = job.options.source.empty() ? of_shards : job.options.source;
  if (path.empty()) return nullptr;
  return open_checkpoint(path, job.world, job.open_options_of_other());
}

/// In which form values are written, and as which tensors.
void report_export(Job& job, ExportTarget const& target) {
  job.report["choices"]["export_layout"] = job.options.export_layout;
  job.report["choices"]["gdn_dtype"] = job.options.gdn_dtype;
  job.report["choices"]["writers"] = job.options.gather ? "rank 0" : "all ranks";
  job.report["export"] = {{"values", target.converted ? "held" : "read"},
                          {"tensors", std::ranges::count(target.taken, true)},
                          {"copied_from", nullptr}};
}

}  // namespace

void to_hf(Job& job) {
  auto const& options = job.options;
  job.expect_free(options.output, StagedOutput::Kind::folder, options.overwrite, options.resumes());
  auto const checkpoint = job.open_input();
  on_every_rank(job.world, [&] { check_source(options, *checkpoint); });
  job.report_mesh(make_mesh(job.world.size()));
  auto save = export_options(job);
  ExportTarget target;
  on_every_rank(job.world, [&] { target = make_export_target(*checkpoint, save); });
  job.report_selection(target.model);
  report_values(job, *checkpoint);
  report_export(job, target);
  if (target.converted) say_values(job);
  if (has_copies(target)) {
    save.source = open_copied(job, *checkpoint);
    on_every_rank(job.world, [&] { job.report["export"]["copied_from"] = copied_from(*checkpoint, save).path; });
  }
  if (options.dry_run) {
    auto const& hf = target.files.hf;
    job.report_headers(hf.headers);
    job.console.say(fmt::format("to-hf would write {} and {} to {}", counted(hf.files.size(), "file"),
                                counted(hf.side_files.size(), "side file"), options.output));
    return;
  }
  job.report["verify"]["level"] = options.verify;
  ExportReport exported;
  auto const seconds = job.timed("to_hf", [&] {
    exported = rankslice::to_hf(*checkpoint, options.output, job.world, save, options.verify_level());
  });
  job.report_headers(exported.headers);
  job.report_ranks({.wanted = exported.bytes_read, .read = exported.bytes_read}, 0);
  job.report_written(exported.bytes_written, exported.resumed);
  VerifyReport verified;  // an export that differs is an error, so there is nothing else to report
  verified.level = options.verify_level();
  verified.reread = exported.reread;
  if (verified.reread) verified.reference = "reread";
  if (digests(verified.level) && checkpoint->digests) verified.reference = checkpoint->digests_from;
  for (auto const& parameter : target.model.parameters) {
    if (std::ranges::none_of(parameter.tensors, [&](std::uint32_t tensor) { return target.taken[tensor]; })) continue;
    ++verified.tensors;
    if (parameter.stacked_experts) verified.experts += parameter.part_count();
  }
  job.report_verify(verified);
  for (auto const& name : checkpoint->hf.left_out) job.console.detail("left out by the source: " + name);
  job.console.say(fmt::format("to-hf    {:.2f} s  {}: {} and {}, read back", seconds, options.output,
                              counted(exported.files, "file"), counted(checkpoint->hf.side_files.size(), "side file")));
}

}  // namespace rankslice::cli

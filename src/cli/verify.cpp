#include "rankslice/verify.hpp"

#include <fmt/format.h>

#include "cli/commands.hpp"
#include "cli/listing.hpp"
#include "cli/manifest_output.hpp"
#include "cli/sha256.hpp"
#include "plan/plan.hpp"

namespace rankslice::cli {

void verify(Job& job) {
  auto const& options = job.options;
  auto const checkpoint = job.open_selected();
  expect_manifest_writable(job, *checkpoint);
  std::shared_ptr<Checkpoint const> against;
  if (!options.against.empty()) {
    job.timed("open_against",
              [&] { against = open_checkpoint(options.against, job.world, job.open_options_of_other()); });
    on_every_rank(job.world, [&] { against = select_tensors(against, job.keys()); });
  }
  auto const mesh = make_mesh(job.world.size());
  job.report_mesh(mesh);
  auto const plan = make_save_plan(checkpoint->model, {.mesh = mesh}, job.world.rank());
  auto const bytes = plan_bytes(checkpoint->model, plan, checkpoint->storage.form);
  auto const sums = find_asked_sums(job);
  if (options.dry_run) {
    job.console.say(fmt::format("verify would read {} on this rank", human_bytes(bytes)));
    return;
  }
  if (sums) check_asked_sums(job, *sums);

  job.report["verify"]["level"] = options.verify;
  VerifyReport verified;
  auto const seconds = job.timed("verify", [&] {
    verified = rankslice::verify(*checkpoint, job.world,
                                 {.level = options.verify_level(), .against = against.get(), .call = job.call()});
  });
  auto const read = digests(verified.level) ? bytes : 0;
  job.report_ranks({.wanted = read, .read = read}, 0);
  job.report_verify(verified);
  throw_if_bad(job.world, verified);
  job.console.say(describe(verified, seconds));
  auto const advise = !job.options.write_manifest.has_value();
  if (advise && verified.level == VerifyLevel::full && verified.reference == "none") {
    job.console.warn(
        "nothing to compare with: every byte could be read, no more; give --against, or --write-manifest for the next "
        "time");
  }
  write_manifest(job, *checkpoint, verified);
}

}  // namespace rankslice::cli

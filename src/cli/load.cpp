#include "rankslice/load.hpp"

#include <fmt/format.h>

#include "rankslice/store.hpp"
#include "rankslice/to_hf.hpp"

#include "cli/commands.hpp"
#include "cli/device.hpp"
#include "cli/listing.hpp"
#include "io/huge_pages.hpp"
#include "plan/dense_shares.hpp"

namespace rankslice::cli {

namespace {

std::string expert_range(StateDict const& state) {
  for (auto const& [fqn, tensor] : state.tensors) {
    if (tensor.parameter.stacked_experts)
      return fmt::format("[{}, {})", tensor.slice().part.begin, tensor.slice().part.end);
  }
  return "none";
}

void write_outputs(Job& job, StateDict const& state) {
  auto const& options = job.options;
  SaveOptions const save{.overwrite = options.overwrite, .resume = options.resumes(), .call = job.call()};
  if (!options.store.empty()) {
    SaveReport stored;
    auto const seconds = job.timed("store", [&] { stored = save_store(state, options.store, job.world, save); });
    job.report_written(stored.bytes_written, stored.resumed);
    job.console.say(fmt::format("store    {:.2f} s  {}", seconds, options.store));
  }
  if (!options.save_shards.empty()) {
    auto const seconds = job.timed("save_shards", [&] {
      options.rank ? save_shard(state, options.save_shards, save)
                   : save_shards(state, options.save_shards, job.world, save);
    });
    job.console.say(fmt::format("shards   {:.2f} s  {}", seconds, options.save_shards));
  }
}

std::string why_so(Job const& job) {
  if (job.options.rank) return "one rank alone";
  if (job.options.dense_reading() != DenseReading::automatic) return "as asked for";
  auto const hosts = first_ranks_of_hosts(job.world).size();
  return hosts == 1 ? "the ranks are on one host" : fmt::format("the ranks are on {} hosts", hosts);
}

/// Who reads dense tensors. @throws UsageError
DenseReading choose_dense(Job& job) {
  auto const chosen = job.options.rank ? DenseReading::each_rank : choose(job.options.dense_reading(), job.world);
  job.report["choices"]["dense"] = name(chosen);
  job.console.detail(fmt::format("dense    {}: {}", name(chosen), why_so(job)));
  return chosen;
}

/// On which pages of the host large tensors will stand.
void report_pages(Job& job) {
  auto const why_not = job.options.huge_pages() == HugePages::off ? "as asked for" : why_no_huge_pages();
  job.report["choices"]["hugepages"] = why_not.empty() ? "on" : "off";
  job.console.detail(fmt::format("pages    {}", why_not.empty() ? "huge" : "small: " + why_not));
}

}  // namespace

void load(Job& job) {
  auto const& options = job.options;
  Mesh mesh;
  on_every_rank(job.world,
                [&] { mesh = make_mesh(options.ranks.value_or(job.world.size()), options.ep, options.ep_shard); });
  if (!options.rank) {  // which adds a file to a folder that other ranks fill as well
    job.expect_free(options.store, StagedOutput::Kind::file, options.overwrite, options.resumes());
    job.expect_free(options.save_shards, StagedOutput::Kind::folder, options.overwrite);
  }
  auto const coordinate = mesh.coordinate(options.rank.value_or(job.world.rank()));
  job.report_mesh(mesh);

  auto const dense = choose_dense(job);
  auto const device = options.dry_run ? nullptr : choose_device(job);
  if (!device) report_pages(job);

  // The clock runs from before the first file is opened to the slowest rank's last tensor.
  auto const start = std::chrono::steady_clock::now();
  std::shared_ptr<Checkpoint const> source;
  LoadPlan planned;
  StateDict state;
  auto const seconds_load = job.timed("load", [&] {
    source = job.open_selected();
    job.timed("plan", [&] {
      on_every_rank(job.world, [&] {
        planned = make_load_plan(source->model, source->storage.form, mesh, mesh.rank(coordinate), dense);
      });
    });
    if (options.dry_run) return;
    LoadOptions const load_options{.device = device,
                                   .verify = options.verify_level(),
                                   .dense = dense,
                                   .huge_pages = options.huge_pages(),
                                   .call = job.call()};
    state = options.rank ? rankslice::load(source, mesh, coordinate, load_options)
                         : rankslice::load(source, mesh, job.world, load_options);
  });
  if (options.dry_run) return list_plan(job, *source, mesh, dense);
  std::chrono::duration<double> const own_seconds = job.last_block() - start;
  job.report_ranks({.wanted = planned.bytes_wanted, .read = planned.bytes_read, .owned = planned.bytes_owned},
                   own_seconds.count(), device.get());
  job.console.say(fmt::format("load     {:.2f} s  {} read by {}, experts {} on this one", seconds_load,
                              human_bytes(job.report["bytes"]["read"].get<std::uint64_t>()),
                              counted(static_cast<std::uint64_t>(job.world.size()), "rank"), expert_range(state)));
  report_values(job, *source);
  say_values(job);

  VerifyReport verified;
  VerifyOptions const verify_options{.level = options.verify_level(), .call = job.call()};
  auto const seconds = job.timed("verify", [&] {
    verified =
        options.rank ? rankslice::verify(state, verify_options) : rankslice::verify(state, job.world, verify_options);
  });
  job.report_verify(verified);
  throw_if_bad(job.world, verified);
  job.console.say(describe(verified, seconds));
  if (verified.experts_in_part > 0 && source->digests && digests(verified.level)) {
    job.console.warn(
        fmt::format("{} are here in part, and alone these cannot be compared with what {} recorded of the "
                    "whole: load with all ranks, or verify {}",
                    counted(verified.experts_in_part, "expert block"), options.input, options.input));
  }
  write_outputs(job, state);
}

}  // namespace rankslice::cli

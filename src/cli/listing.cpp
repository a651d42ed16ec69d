#include "cli/listing.hpp"

#include <fmt/format.h>

#include "facts/model_facts.hpp"
#include "facts/plan_facts.hpp"
#include "model/family.hpp"

namespace rankslice::cli {

void list_plan(Job& job, Checkpoint const& source, Mesh const& mesh, DenseReading dense) {
  auto const& [options, rank] = std::tie(job.options, job.options.rank);
  auto const asked_for_dtype = options.open_dtype().has_value();
  job.listed = true;
  if (job.world.rank() != 0) return;
  if (options.json) {
    print_data(json_text(rank ? plan_of_rank(source, mesh, dense, *rank, options.command)
                              : plan_of_all_ranks(source, mesh, dense, asked_for_dtype, options.command)));
  } else {
    print_data(rank ? lines_of_rank(source, mesh, dense, *rank)
                    : table_of_all_ranks(source, mesh, dense, asked_for_dtype));
  }
}

void report_values(Job& job, Checkpoint const& checkpoint) {
  auto const conversions = summarize_conversions(checkpoint, job.options.open_dtype().has_value());
  job.report["quantisation"] = summarize_quantisation(checkpoint);
  job.report["conversions"] = conversions;
  auto& choices = job.report["choices"];
  choices["dtype"] = job.options.dtype;
  choices["text_only"] = is_text_only(checkpoint.family);
}

void say_values(Job& job) {
  for (auto const& line : value_lines(job.report["conversions"])) job.console.say("values   " + line);
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

}  // namespace rankslice::cli

#include "synth/synth.hpp"

#include <fmt/format.h>

#include "cli/commands.hpp"
#include "facts/words.hpp"

namespace rankslice::cli {

void synth(Job& job) {
  auto const& options = job.options;
  SynthOptions const synth_options{
      .family = options.family,
      .preset = options.preset,
      .seed = options.seed,
      .layers = options.layers,
      .experts = options.experts,
      .layout = options.expert_layout == "transformers" ? SynthLayout::transformers : SynthLayout::hub,
      .quantization = options.stored_as == "fp8" ? SynthQuantization::fp8 : SynthQuantization::none,
      .decoder_experts = parse_expert_form(options.decoder_experts),  // nothing for auto
      .mtp_experts = parse_expert_form(options.mtp_experts),
      .text_only = options.text_only,
      .headers_only = options.headers_only,
      .overwrite = options.overwrite,
      .dry_run = options.dry_run,
      .call = job.call()};
  SynthReport made;
  auto const seconds = job.timed("synth", [&] { made = synthesize(options.output, synth_options); });
  job.report["family"] = made.family;
  job.report["bytes"]["checkpoint"] = made.bytes;
  job.console.say(fmt::format(
      "{} {}: {}, {} in {}", options.dry_run ? "synth would write" : fmt::format("synth    {:.2f} s ", seconds),
      options.output, counted(made.tensors, "tensor"), human_bytes(made.bytes), counted(made.files, "file")));
}

}  // namespace rankslice::cli

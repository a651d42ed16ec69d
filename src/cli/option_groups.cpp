#include "cli/option_groups.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <vector>

#include "model/family.hpp"
#include "model/torch_dtype.hpp"

namespace rankslice::cli {

CLI::Option* with_environment(CLI::Option* option) {
  auto const upper = [](unsigned char c) { return c == '-' ? '_' : static_cast<char>(std::toupper(c)); };
  std::string variable = "RANKSLICE_" + option->get_lnames().front();
  std::ranges::transform(variable, variable.begin(), upper);
  return option->envname(variable);
}

CLI::Validator whole_number(std::uint64_t least, std::uint64_t most) {
  return {[least, most](std::string& text) {
            std::uint64_t number = 0;
            auto const [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
            auto const whole = error == std::errc{} && end == text.data() + text.size();
            return whole && least <= number && number <= most
                       ? std::string()
                       : fmt::format("expected a whole number from {} to {}, found {}", least, most, text);
          },
          "", ""};
}

CLI::Option* flag(CLI::App& app, std::string const& flags, bool& value, std::string const& help) {
  return with_environment(app.add_flag(flags, value, help));
}

void add_output_options(CLI::App& app, Options& o) {
  flag(app, "--dry-run", o.dry_run, "Say what would be done, and do nothing");
  option(app, "--report", o.report, "Write the report (JSON) to this file")->type_name("FILE");
  flag(app, "--json", o.json, "Print the report, or the listing, as JSON on stdout");
  option(app, "--progress", o.progress, "Progress on stderr")
      ->check(CLI::IsMember({"auto", "on", "off"}))
      ->capture_default_str();
  flag(app, "-q,--quiet", o.quiet, "Nothing on stderr but errors");
  with_environment(app.add_flag("-v,--verbose", o.verbose, "More on stderr"));
  option(app, "--log-format", o.log_format, "Lines on stderr")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
}

void add_model_options(CLI::App& app, Options& o) {
  std::vector<std::string> dtypes{"preserve"};
  for (auto const& dtype : kTorchDTypes) dtypes.emplace_back(dtype.name);
  option(app, "--family", o.family, fmt::format("Model family: auto (by config.json), or one of {}", family_names()))
      ->capture_default_str();
  option(app, "--expert-layout", o.expert_layout, "How the axes of grouped experts lie, where their shapes do not tell")
      ->check(CLI::IsMember({"auto", "hub", "transformers"}))
      ->capture_default_str();
  option(app, "--dtype", o.dtype,
         "Of floating tensors in memory, but for those that training keeps in F32; preserve: as they are, block-FP8 "
         "weights in config.json's dtype, or else BF16")
      ->check(CLI::IsMember(dtypes))
      ->capture_default_str();
  flag(app, "--text-only", o.text_only,
       "Only the language model, its names without language_model.; always so for checkpoints of text models");
}

void add_selection_options(CLI::App& app, Options& o, std::string_view keys_of) {
  auto const rule =
      fmt::format("tensors whose HF key in the {} matches this regex, from its first character on", keys_of);
  option(app, "--include", o.include, "Only " + rule)->type_name("REGEX");
  option(app, "--exclude", o.exclude, "No " + rule)->type_name("REGEX");
}

void add_rank_options(CLI::App& app, Options& o) {
  option(app, "--comm", o.comm, "How ranks talk: auto takes NCCL where tensors go to GPUs and each rank has its own")
      ->check(CLI::IsMember({"auto", "mpi", "nccl"}))
      ->capture_default_str();
  option(app, "--timeout", o.timeout_s, "Seconds that a rank may go without progress before all give up")
      ->type_name("SECONDS")
      ->check(CLI::Range(1e-3, 1e7))
      ->capture_default_str();
}

void add_reading_options(CLI::App& app, Options& o) {
  option(app, "--io", o.io,
         "How files are read: pread, one read after the other; io_uring, many at once; direct, the same past the page "
         "cache; auto: by what is in the page cache, and the file system")
      ->check(CLI::IsMember({"auto", "pread", "io_uring", "direct"}))
      ->capture_default_str();
  option(app, "--cache", o.cache, "Whether what was read stays in the page cache; drop leaves that to others")
      ->check(CLI::IsMember({"keep", "drop"}))
      ->capture_default_str();
  option(app, "--threads", o.threads,
         "That move and digest bytes on each rank [its processors, or its share of those that other ranks have too]")
      ->check(whole_number(1, kMostThreads));
}

void add_huge_pages_option(CLI::App& app, Options& o) {
  option(app, "--hugepages", o.hugepages,
         "Tensors on huge pages of host memory: auto, where the system gives them; on, or else an error; off")
      ->check(CLI::IsMember({"auto", "on", "off"}))
      ->capture_default_str();
}

void add_job_options(CLI::App& app, Options& o, std::string_view keys_of) {
  add_model_options(app, o);
  add_selection_options(app, o, keys_of);
  option(app, "--device", o.device, "Where load puts the tensors: auto takes GPUs where every rank has one")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  option(app, "--verify", o.verify,
         "What is proved: off, coverage (who holds what), full (what was read is held, and as recorded), or reread "
         "(the same, "
         "and another rank reads the bytes again)")
      ->check(CLI::IsMember({"off", "coverage", "full", "reread"}))
      ->capture_default_str();
  add_rank_options(app, o);
  add_reading_options(app, o);
  flag(app, "--overwrite", o.overwrite, "Replace outputs that exist, each in one step at the end");
  option(app, "--metrics-file", o.metrics_file,
         "Keep metrics in this file, in the text format of Prometheus, and rewrite it after each phase and every few "
         "seconds")
      ->type_name("FILE");
  option(app, "--trace", o.trace, "Write what every rank did when to this file, as Chrome and Perfetto show it")
      ->type_name("FILE");
  add_output_options(app, o);
}

void add_manifest_option(CLI::App& app, Options& o) {
  option(app, "--manifest", o.manifest,
         "Compare with the digests in this file; without it with those in CKPT/rankslice.manifest.json, if the files "
         "still match it")
      ->type_name("FILE");
}

void add_mesh_options(CLI::App& app, Options& o) {
  option(app, "--ep", o.ep, "Expert-parallel width; ranks = ep_replicate × ep_shard × ep [all ranks]")
      ->check(whole_number(1, kMostRanks));
  option(app, "--ep-shard", o.ep_shard, "Ranks that share each expert: axis 1 of its native form is divided among them")
      ->check(whole_number(1, kMostRanks))
      ->capture_default_str();
}

void add_dense_option(CLI::App& app, Options& o, std::string const& what_auto_is) {
  option(
      app, "--dense", o.dense,
      "Tensors that every rank holds whole, and short rows that --ep-shard divides: each-rank reads all it needs, or "
      "the ranks read each byte once, a share each, and pass it on; auto: " +
          what_auto_is)
      ->check(CLI::IsMember({"auto", "each-rank", "once"}))
      ->capture_default_str();
}

void add_input(CLI::App& app, Options& o, std::string const& name, std::string const& help) {
  app.add_option(name, o.input, help)->required();
}

}  // namespace rankslice::cli

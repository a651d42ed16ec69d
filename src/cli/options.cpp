#include "cli/options.hpp"

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <iostream>
#include <limits>
#include <map>
#include <utility>

#include "rankslice/checkpoint.hpp"
#include "rankslice/error.hpp"

#include "cli/bench_steps.hpp"
#include "cli/version.hpp"
#include "model/family.hpp"
#include "model/torch_dtype.hpp"

namespace rankslice::cli {

namespace {

/// Put the `RANKSLICE_…` variable behind an option: of `--save-shards`, RANKSLICE_SAVE_SHARDS.
CLI::Option* with_environment(CLI::Option* option) {
  auto const upper = [](unsigned char c) { return c == '-' ? '_' : static_cast<char>(std::toupper(c)); };
  std::string variable = "RANKSLICE_" + option->get_lnames().front();
  std::ranges::transform(variable, variable.begin(), upper);
  return option->envname(variable);
}

template <typename T>
CLI::Option* option(CLI::App& app, std::string const& flags, T& value, std::string const& help) {
  return with_environment(app.add_option(flags, value, help));
}

/// A number in digits, from `least` on: the parser by itself takes -1 for 2^64 - 1.
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

constexpr std::uint64_t kMostRanks = 1U << 20;

CLI::Option* flag(CLI::App& app, std::string const& flags, bool& value, std::string const& help) {
  return with_environment(app.add_flag(flags, value, help));
}

void add_output_options(CLI::App& app, Options& o) {
  flag(app, "--dry-run", o.dry_run, "Say what would be done, and do nothing");
  option(app, "--report", o.report, "Write the report (JSON) to this file");
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

void add_selection_options(CLI::App& app, Options& o, std::string_view keys_of = "source") {
  auto const rule =
      fmt::format("tensors whose HF key in the {} matches this regex, from its first character on", keys_of);
  option(app, "--include", o.include, "Only " + rule);
  option(app, "--exclude", o.exclude, "No " + rule);
}

void add_rank_options(CLI::App& app, Options& o) {
  option(app, "--comm", o.comm, "How ranks talk: auto takes NCCL where tensors go to GPUs and each rank has its own")
      ->check(CLI::IsMember({"auto", "mpi", "nccl"}))
      ->capture_default_str();
  option(app, "--timeout", o.timeout_s, "Seconds that a rank may go without progress before all give up")
      ->check(CLI::Range(1e-3, 1e7))
      ->capture_default_str();
}

void add_job_options(CLI::App& app, Options& o, std::string_view keys_of = "source") {
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
  flag(app, "--overwrite", o.overwrite, "Replace outputs that exist, each in one step at the end");
  add_output_options(app, o);
}

void add_manifest_option(CLI::App& app, Options& o) {
  option(app, "--manifest", o.manifest,
         "Compare with the digests in this file; without it with those in CKPT/rankslice.manifest.json, if the files "
         "still match it");
}

void add_mesh_options(CLI::App& app, Options& o) {
  option(app, "--ep", o.ep, "Expert-parallel width; ranks = ep_replicate × ep_shard × ep [all ranks]")
      ->check(whole_number(1, kMostRanks));
  option(app, "--ep-shard", o.ep_shard, "Ranks that share each expert: axis 1 of its native form is divided among them")
      ->check(whole_number(1, kMostRanks))
      ->capture_default_str();
}

void add_input(CLI::App& app, Options& o, std::string const& name, std::string const& help) {
  app.add_option(name, o.input, help)->required();
}

void add_inspect(CLI::App& app, Options& o) {
  auto& sub =
      *app.add_subcommand("inspect", "What is in a checkpoint: family, layouts, tensors, experts, bytes, oddities");
  add_input(sub, o, "CKPT", "Folder of safetensors files, native store, or folder of shards");
  add_model_options(sub, o);
  add_selection_options(sub, o);
  add_output_options(sub, o);
  sub.footer("Example:\n  rankslice inspect Qwen3.6-35B-A3B");
}

void add_plan(CLI::App& app, Options& o) {
  auto& sub =
      *app.add_subcommand("plan", "What each rank would read and hold; needs no MPI, no GPU and no tensor bytes");
  add_input(sub, o, "CKPT", "Folder of safetensors files, native store, or folder of shards");
  option(sub, "--ranks", o.ranks, "Number of ranks")->check(whole_number(1, kMostRanks))->required();
  option(sub, "--rank", o.rank, "List the byte ranges, or keys, of this rank")->check(whole_number(0, kMostRanks));
  flag(sub, "--quantization", o.quantization,
       "List instead the HF keys, dtypes and shapes that --rank [0] loads, its experts one by one and in block-FP8");
  add_mesh_options(sub, o);
  add_model_options(sub, o);
  add_selection_options(sub, o);
  add_output_options(sub, o);
  sub.footer(
      "Examples:\n  rankslice plan Qwen3.6-35B-A3B --ranks 64 --ep 8\n"
      "  rankslice plan Qwen3.6-35B-A3B --ranks 64 --ep 8 --rank 3 --quantization");
}

void add_synth(CLI::App& app, Options& o) {
  auto& sub =
      *app.add_subcommand("synth", "A faithful checkpoint of a real architecture, with made-up values, of any size");
  sub.add_option("OUT", o.output, "Folder to make")->required();
  option(sub, "--family", o.family,
         "qwen3_5_moe, qwen3_vl_moe, qwen3_moe, qwen3_next, or auto: that of the preset, or the first")
      ->capture_default_str();
  option(sub, "--preset", o.preset, "The model, see below")->capture_default_str();
  auto const any = whole_number(0, std::numeric_limits<std::uint64_t>::max());
  option(sub, "--seed", o.seed, "Other values for the same names")->check(any)->capture_default_str();
  option(sub, "--layers", o.layers, "Number of decoder layers [the preset's]")->check(any);
  option(sub, "--experts", o.experts, "Number of experts [the preset's]")->check(any);
  option(sub, "--expert-layout", o.expert_layout,
         "hub (auto is that too): as released; transformers: as save_pretrained writes a model built from scratch")
      ->check(CLI::IsMember({"auto", "hub", "transformers"}))
      ->capture_default_str();
  option(sub, "--quantization", o.stored_as,
         "fp8: matrices as the FP8 releases have them, F8_E4M3 with a scale for every block of 128 x 128")
      ->check(CLI::IsMember({"none", "fp8"}))
      ->capture_default_str();
  option(
      sub, "--decoder-experts", o.decoder_experts,
      "Two tensors for all experts of a layer, or three for each; auto: as family, layout and quantization have them")
      ->check(CLI::IsMember({"auto", "grouped", "split"}))
      ->capture_default_str();
  option(sub, "--mtp-experts", o.mtp_experts, "The same for the MTP block; auto: as in the preset's model")
      ->check(CLI::IsMember({"auto", "grouped", "split"}))
      ->capture_default_str();
  flag(sub, "--text-only", o.text_only, "Of qwen3_5_moe: the decoder by itself, a qwen3_5_moe_text without vision");
  flag(sub, "--headers-only", o.headers_only, "Sparse files: real headers and sizes, no values");
  flag(sub, "--overwrite", o.overwrite, "Replace OUT if it exists");
  add_output_options(sub, o);
  sub.footer(
      "Presets:\n"
      "  tiny (14 MB), small (2 GB), medium (8 GB)              of all families, see --family\n"
      "  qwen3.5-35b-a3b, qwen3.6-35b-a3b (72 GB)               real models in full\n"
      "  qwen3.5-122b-a10b (250 GB), qwen3.5-397b-a17b (807 GB)\n"
      "  qwen3-vl-30b-a3b (62 GB), qwen3-vl-235b-a22b (471 GB)\n"
      "  qwen3-30b-a3b (61 GB), qwen3-next-80b-a3b (163 GB)\n\n"
      "Examples:\n  rankslice synth tiny --family qwen3_5_moe --preset tiny\n"
      "  rankslice synth fp8 --family qwen3_5_moe --preset tiny --quantization fp8\n"
      "  rankslice synth huge --preset qwen3.5-397b-a17b --headers-only");
}

void add_load(CLI::App& app, Options& o) {
  auto& sub =
      *app.add_subcommand("load", "Every rank reads its experts and the dense tensors, transposes, and all prove it");
  add_input(sub, o, "CKPT", "Folder of safetensors files, native store, or folder of shards");
  option(sub, "--store", o.store, "Write a native store (HDF5), all ranks in parallel");
  option(sub, "--save-shards", o.save_shards, "Write each rank's local tensors into this folder");
  option(sub, "--rank", o.rank, "Rank-local: load as this rank of --ranks, alone and without MPI")
      ->check(whole_number(0, kMostRanks));
  option(sub, "--ranks", o.ranks, "Rank-local: of so many ranks")->check(whole_number(1, kMostRanks));
  add_mesh_options(sub, o);
  add_manifest_option(sub, o);
  add_job_options(sub, o);
  sub.footer(
      "Examples:\n  mpirun -n 4 rankslice load Qwen3.6-35B-A3B --ep 4 --store qwen.h5\n"
      "  rankslice load Qwen3.6-35B-A3B --rank 3 --ranks 8 --save-shards shards");
}

void add_verify(CLI::App& app, Options& o) {
  auto& sub =
      *app.add_subcommand("verify", "Read every byte once, the ranks sharing the work, and compare the digests");
  add_input(sub, o, "CKPT", "Folder of safetensors files, native store, or folder of shards");
  option(sub, "--against", o.against, "Checkpoint or store that must hold the same tensors");
  option(sub, "--write-manifest", o.write_manifest,
         "Write the digests to this file [CKPT/rankslice.manifest.json] when nothing differs. One that is there and "
         "still holds is left alone; any other needs --overwrite, which compares with none that it replaces")
      ->expected(0, 1);
  add_manifest_option(sub, o);
  option(
      sub, "--sha256", o.sha256,
      "First read whole files, too, and compare them with this list, as sha256sum writes it [CKPT/SHA256SUMS, or else "
      "the names of the blobs to which the files lead in a Hub cache]")
      ->expected(0, 1);
  add_job_options(sub, o);
  sub.footer(
      "Examples:\n  mpirun -n 4 rankslice verify qwen.h5 --against Qwen3.6-35B-A3B\n"
      "  mpirun -n 4 rankslice verify Qwen3.6-35B-A3B --sha256 --write-manifest");
}

void add_to_hf(CLI::App& app, Options& o) {
  auto& sub =
      *app.add_subcommand("to-hf", "Reassemble the Hugging Face checkpoint, byte for byte where nothing was changed");
  add_input(sub, o, "INPUT", "Native store, folder of shards, or folder of safetensors files");
  sub.add_option("OUT_DIR", o.output, "Folder to make")->required();
  option(sub, "--source", o.source,
         "For shards: take headers and side files from here, not from the recorded source; with --export-layout source "
         "also for stores: copy from here");
  option(sub, "--export-layout", o.export_layout,
         "auto: values that were converted go as they are held, under fresh headers; source: as the checkpoint had "
         "them, copied from it where they cannot be computed back")
      ->check(CLI::IsMember({"auto", "source"}))
      ->capture_default_str();
  option(sub, "--gdn-dtype", o.gdn_dtype, "Parameters that training keeps in F32: in the source's dtype, or F32")
      ->check(CLI::IsMember({"preserve", "upstream"}))
      ->capture_default_str();
  flag(sub, "--gather", o.gather,
       "Only rank 0 writes: the others send it what they read, and need no access to OUT_DIR");
  add_manifest_option(sub, o);
  add_job_options(sub, o, "export");
  sub.footer("Example:\n  mpirun -n 4 rankslice to-hf qwen.h5 exported");
}

void add_bench(CLI::App& app, Options& o) {
  auto& sub = *app.add_subcommand(
      "bench", "How fast each step is, beside what the machine can do with the same bytes, measured in the same run");
  sub.add_option("CKPT", o.input, "Folder of safetensors files, native store, or folder of shards [a synthetic one]");
  option(sub, "--preset", o.preset, "Without CKPT: the synthetic checkpoint to make, as of `rankslice synth` [small]");
  option(sub, "--scratch", o.scratch,
         "Folder that all ranks share; what is written goes below it and is removed [$TMPDIR, or the working folder]");
  option(sub, "--repeats", o.repeats, "How often each run is timed")->check(CLI::Range(1, 1000))->capture_default_str();
  std::vector<std::string> steps;
  for (auto const& step : bench_steps()) steps.emplace_back(step.name);
  option(sub, "--steps", o.steps, fmt::format("Some of {} [all]", fmt::join(steps, ",")))
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::IsMember(steps));
  add_model_options(sub, o);
  add_rank_options(sub, o);
  add_output_options(sub, o);
  sub.footer(
      "Examples:\n  mpirun -n 2 rankslice bench --preset tiny --repeats 3\n"
      "  mpirun -n 8 rankslice bench Qwen3.6-35B-A3B --steps load,verify --report bench.json");
}

void refuse(bool asked, std::string const& what) {
  if (asked) throw UsageError(what + ": not in this version");
}

/// Options that are promised for later: asking for them is no typing error either.
void refuse_later_options(int argc, char** argv) {
  for (int i = 2; i < argc; ++i) {
    std::string_view const word(argv[i]);
    auto const name = word.substr(0, word.find('='));
    for (auto const* later : {"--dense", "--io", "--cache", "--hugepages", "--threads", "--resume", "--metrics-file",
                              "--trace", "--compare", "--master-port", "--max-bandwidth", "--grace", "--side-files"}) {
      refuse(name == later, std::string(name));
    }
  }
}

/// The parser reads the environment for all commands, called or not, and an option of one name may take other values in
/// another command.
void forget_environment_of_others(CLI::App& app, std::string_view called) {
  for (auto* const command : app.get_subcommands({})) {
    if (command->get_name() == called) continue;
    for (auto* const option : command->get_options()) option->envname("");
  }
}

/// The parser itself says of a word that is no command only that a command is required.
void check_command_name(CLI::App const& app, int argc, char** argv) {
  if (argc < 2 || argv[1][0] == '-') return;
  std::string const word = argv[1];
  // Names that are promised for later: asking for them is no typing error.
  for (auto const* reserved : {"doctor", "serve", "ctl"}) refuse(word == reserved, word);
  std::string known;
  for (auto const* const command : app.get_subcommands({})) {
    if (command->get_name() == word) return;
    known += (known.empty() ? "" : ", ") + command->get_name();
  }
  throw UsageError(fmt::format("{}: no such command; there are {}", word, known));
}

}  // namespace

void check_options(Options const& o) {
  if (o.comm == "nccl" && o.rank) throw UsageError("--comm nccl: a rank-local load talks to nobody");
  if (o.device == "cuda" && o.command != "load") {
    throw UsageError(
        fmt::format("--device cuda: only load brings tensors to a GPU; {} moves them between files", o.command));
  }
  (void)key_selection(o.include, o.exclude);  // refuses bad patterns before any file is opened
  for (auto const& [name, value] : {std::pair("--against", o.against), std::pair("--manifest", o.manifest)}) {
    if (value.empty() || digests(o.verify_level())) continue;
    throw UsageError(fmt::format("{} {}: nothing is compared with it at --verify {}", name, value, o.verify));
  }
  if (o.write_manifest && o.verify != "full" && o.verify != "reread") {
    throw UsageError(fmt::format("--write-manifest reads every byte, which --verify {} does not", o.verify));
  }
  if (o.write_manifest && (!o.include.empty() || !o.exclude.empty() || o.text_only)) {
    throw UsageError("--write-manifest: a manifest is of a whole checkpoint, not of some of its tensors");
  }
  if (!std::isfinite(o.timeout_s)) throw UsageError(fmt::format("--timeout {}: expected seconds", o.timeout_s));
  if (o.command == "load" && o.rank.has_value() != o.ranks.has_value()) {
    throw UsageError("--rank and --ranks belong together");
  }
  if (o.rank && *o.rank >= *o.ranks) {
    throw UsageError(fmt::format("--rank {}: the ranks are 0 to {}", *o.rank, *o.ranks - 1));
  }
  if (o.command == "load" && o.rank && !o.store.empty()) {
    throw UsageError("--store needs all ranks; a rank-local load can be kept with --save-shards");
  }
  if (o.command == "load" && o.rank && o.verify == "coverage") {
    throw UsageError(
        "--verify coverage needs all ranks: it asks who holds what; one rank alone has off, full and reread");
  }
  if (o.command == "bench" && !o.input.empty() && !o.preset.empty()) {
    throw UsageError(fmt::format("--preset {}: is for a synthetic checkpoint, and {} is given", o.preset, o.input));
  }
}

std::chrono::milliseconds Options::timeout() const {
  return std::chrono::milliseconds(std::max<std::int64_t>(1, static_cast<std::int64_t>(timeout_s * 1000)));
}

VerifyLevel Options::verify_level() const { return parse_verify_level(verify).value(); }

std::optional<DType> Options::open_dtype() const {
  return parse_torch_dtype(dtype);  // nothing for preserve
}

std::optional<Options> parse_options(int argc, char** argv) {
  // Each command has options of its own, with defaults of its own.
  std::map<std::string, Options> of_command;
  CLI::App app("Distributed loading of Mixture-of-Experts checkpoints: every rank reads only its expert slice.");
  app.name("rankslice");
  app.set_version_flag("--version", fmt::format("rankslice {}", kVersion));
  app.require_subcommand(1);
  app.footer(
      "Example:\n  rankslice synth tiny --family qwen3_5_moe --preset tiny\n"
      "  mpirun -n 4 rankslice load tiny --ep 4 --store tiny.h5\n"
      "  mpirun -n 4 rankslice to-hf tiny.h5 exported\n\n"
      "RANKSLICE_… variables stand behind every option: RANKSLICE_TIMEOUT=60 is --timeout 60; the command line wins.");
  add_inspect(app, of_command["inspect"]);
  add_plan(app, of_command["plan"]);
  of_command["synth"].preset = "tiny";
  add_synth(app, of_command["synth"]);
  add_load(app, of_command["load"]);
  add_verify(app, of_command["verify"]);
  add_to_hf(app, of_command["to-hf"]);
  add_bench(app, of_command["bench"]);
  check_command_name(app, argc, argv);
  if (argc > 1) forget_environment_of_others(app, argv[1]);
  try {
    app.parse(argc, argv);
  } catch (CLI::Success const& done) {  // --help, --version
    app.exit(done, std::cout, std::cerr);
    return std::nullopt;
  } catch (CLI::ExtrasError const& error) {
    refuse_later_options(argc, argv);
    throw UsageError(fmt::format("{}\nTry: rankslice {} --help", error.what(), argv[1]));
  } catch (CLI::ParseError const& error) {
    throw UsageError(fmt::format("{}\nTry: rankslice {}--help", error.what(),
                                 argc > 1 && argv[1][0] != '-' ? argv[1] + std::string(" ") : ""));
  }
  auto const command = app.get_subcommands().front()->get_name();
  auto& options = of_command.at(command);
  options.command = command;
  return options;
}

}  // namespace rankslice::cli

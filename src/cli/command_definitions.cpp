#include "cli/command_definitions.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <limits>
#include <vector>

#include "cli/bench_steps.hpp"
#include "cli/option_groups.hpp"
#include "cli/version.hpp"

namespace rankslice::cli {

namespace {

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
  add_dense_option(sub, o, "each-rank, as a plan knows of no hosts");
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

void add_resume_option(CLI::App& app, Options& o, std::string_view output) {
  option(app, "--resume", o.resume,
         fmt::format("on: stopped or killed, leave what is written of {0} in {0}.partial-…, and go on there when the "
                     "same is to be written again",
                     output))
      ->check(CLI::IsMember({"on", "off"}))
      ->capture_default_str();
}

void add_load(CLI::App& app, Options& o) {
  auto& sub =
      *app.add_subcommand("load", "Every rank reads its experts and the dense tensors, transposes, and all prove it");
  add_input(sub, o, "CKPT", "Folder of safetensors files, native store, or folder of shards");
  option(sub, "--store", o.store, "Write a native store (HDF5), all ranks in parallel")->type_name("FILE");
  option(sub, "--save-shards", o.save_shards, "Write each rank's local tensors into this folder")->type_name("DIR");
  option(sub, "--rank", o.rank, "Rank-local: load as this rank of --ranks, alone and without MPI")
      ->check(whole_number(0, kMostRanks));
  option(sub, "--ranks", o.ranks, "Rank-local: of so many ranks")->check(whole_number(1, kMostRanks));
  add_mesh_options(sub, o);
  add_dense_option(sub, o, "once where the ranks are on several hosts, else each-rank");
  add_huge_pages_option(sub, o);
  add_manifest_option(sub, o);
  add_resume_option(sub, o, "STORE");
  add_job_options(sub, o);
  sub.footer(
      "Examples:\n  mpirun -n 4 rankslice load Qwen3.6-35B-A3B --ep 4 --store qwen.h5\n"
      "  rankslice load Qwen3.6-35B-A3B --rank 3 --ranks 8 --save-shards shards");
}

void add_verify(CLI::App& app, Options& o) {
  auto& sub =
      *app.add_subcommand("verify", "Read every byte once, the ranks sharing the work, and compare the digests");
  add_input(sub, o, "CKPT", "Folder of safetensors files, native store, or folder of shards");
  option(sub, "--against", o.against, "Checkpoint or store that must hold the same tensors")->type_name("PATH");
  option(sub, "--write-manifest", o.write_manifest,
         "Write the digests to this file [CKPT/rankslice.manifest.json] when nothing differs. One that is there and "
         "still holds is left alone; any other needs --overwrite, which compares with none that it replaces")
      ->type_name("FILE")
      ->expected(0, 1);
  add_manifest_option(sub, o);
  option(
      sub, "--sha256", o.sha256,
      "First read whole files, too, and compare them with this list, as sha256sum writes it [CKPT/SHA256SUMS, or else "
      "the names of the blobs to which the files lead in a Hub cache]")
      ->type_name("FILE")
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
         "also for stores: copy from here")
      ->type_name("PATH");
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
  add_resume_option(sub, o, "OUT_DIR");
  add_job_options(sub, o, "export");
  sub.footer("Example:\n  mpirun -n 4 rankslice to-hf qwen.h5 exported");
}

void add_bench(CLI::App& app, Options& o) {
  auto& sub = *app.add_subcommand(
      "bench", "How fast each step is, beside what the machine can do with the same bytes, measured in the same run");
  sub.add_option("CKPT", o.input, "Folder of safetensors files, native store, or folder of shards [a synthetic one]");
  option(sub, "--preset", o.preset, "Without CKPT: the synthetic checkpoint to make, as of `rankslice synth` [small]");
  option(sub, "--scratch", o.scratch,
         "Folder that all ranks share; what is written goes below it and is removed [$TMPDIR, or the working folder]")
      ->type_name("DIR");
  option(sub, "--repeats", o.repeats, "How often each run is timed [5; with --compare 3]")->check(CLI::Range(1, 1000));
  std::vector<std::string> steps;
  for (auto const& step : bench_steps()) steps.emplace_back(step.name);
  option(sub, "--steps", o.steps, fmt::format("Some of {} [all that --cold asks for]", fmt::join(steps, ",")))
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::IsMember(steps));
  flag(sub, "--cold", o.cold,
       "Also the steps that let the page cache forget the checkpoint's files before each run, whoever else wants them");
  option(sub, "--compare", o.compare,
         "Load the same also with the libraries of this Python: safetensors, torch's distributed checkpoints and NeMo "
         "Automodel's reader; without --steps nothing else is measured")
      ->type_name("PYTHON");
  option(sub, "--chart", o.chart, "Draw what --compare finds into this file, as SVG")->type_name("FILE");
  add_mesh_options(sub, o);
  add_model_options(sub, o);
  add_rank_options(sub, o);
  add_reading_options(sub, o);
  add_huge_pages_option(sub, o);
  add_output_options(sub, o);
  sub.footer(
      "Examples:\n  mpirun -n 2 rankslice bench --preset tiny --repeats 3\n"
      "  mpirun -n 8 rankslice bench Qwen3.6-35B-A3B --steps load,verify --report bench.json");
}

void add_doctor(CLI::App& app, Options& o) {
  auto& sub = *app.add_subcommand(
      "doctor", "What jobs will find here: launch, MPI, GPUs, limits and paths, and where hosts differ, with advice");
  sub.add_option("PATH", o.paths, "Folders and files to look at; in a folder a small file is made and removed");
  option(sub, "--device", o.device, "cuda: a missing GPU is a problem")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  add_rank_options(sub, o);
  add_output_options(sub, o);
  sub.footer("Examples:\n  rankslice doctor /data\n  mpirun -n 4 rankslice doctor /data /scratch");
}

void add_man(CLI::App& app, Options&) {
  auto& sub = *app.add_subcommand("man", "Print the manual page");
  sub.footer("Example:\n  rankslice man | man -l -");
}

void add_completion(CLI::App& app, Options& o) {
  auto& sub = *app.add_subcommand("completion", "Print the script with which a shell completes these commands");
  sub.add_option("SHELL", o.shell, "Whose")->required()->check(CLI::IsMember({"bash", "zsh"}));
  sub.footer("Example:\n  source <(rankslice completion bash)");
}

}  // namespace

void define_commands(CLI::App& app, std::map<std::string, Options>& of_command) {
  app.description("Distributed loading of Mixture-of-Experts checkpoints: every rank reads only its expert slice.");
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
  add_doctor(app, of_command["doctor"]);
  add_man(app, of_command["man"]);
  add_completion(app, of_command["completion"]);
}

}  // namespace rankslice::cli

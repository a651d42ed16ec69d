#include "cli/manifest_output.hpp"

#include <fmt/format.h>

#include <filesystem>

#include "rankslice/manifest.hpp"

#include "facts/words.hpp"

namespace rankslice::cli {

namespace fs = std::filesystem;

namespace {

std::string default_manifest(Options const& options) { return (fs::path(options.input) / kManifestName).string(); }

bool is_there(std::string const& path) {
  std::error_code ignored;
  return fs::symlink_status(path, ignored).type() != fs::file_type::not_found;
}

/// Under any other name it would be one of the files that the checkpoint carries along.
void refuse_other_name(std::string const& output, Options const& options) {
  auto const parent = fs::path(output).parent_path();
  if (!same_place(parent.empty() ? "." : parent.string(), options.input)) return;
  if (same_place(output, default_manifest(options))) return;
  throw IoError(ExitCode::cannot_create,
                fmt::format("{}: would be a side file of {}; in there a manifest is called {}", output, options.input,
                            kManifestName),
                output);
}

[[noreturn]] void refuse_unlike(std::string const& output, Options const& options) {
  throw IoError(
      ExitCode::cannot_create,
      fmt::format("{}: is there, and not used for {}, see the warning; --overwrite replaces it", output, options.input),
      output);
}

/// One that is there, is what the files are compared with, and so need not be written again.
bool may_stay(Options const& options) {
  return !options.overwrite && writes_to_reference(options) && is_there(manifest_output(options));
}

}  // namespace

std::string manifest_output(Options const& options) {
  if (!options.write_manifest) return {};
  return options.write_manifest->empty() ? default_manifest(options) : *options.write_manifest;
}

bool writes_to_reference(Options const& options) {
  if (!options.write_manifest) return false;
  auto const reference = options.manifest.empty() ? default_manifest(options) : options.manifest;
  return same_place(manifest_output(options), reference);
}

void expect_manifest_writable(Job& job, Checkpoint const& checkpoint) {
  auto const& options = job.options;
  auto const output = manifest_output(options);
  if (output.empty()) return;
  bool stays = false;
  on_every_rank(job.world, [&] {
    if (checkpoint.format != CheckpointFormat::huggingface) {
      throw UsageError("--write-manifest: is for folders of safetensors files, and " + options.input + " is none");
    }
    refuse_other_name(output, options);
    stays = may_stay(options);
    if (job.world.rank() == 0 && stays && checkpoint.digests_from != "manifest") refuse_unlike(output, options);
  });
  job.expect_free(stays ? std::string() : output, StagedOutput::Kind::file, options.overwrite);
}

void write_manifest(Job& job, Checkpoint const& checkpoint, VerifyReport const& verified) {
  auto const output = manifest_output(job.options);
  if (output.empty()) return;
  auto const stays =
      !job.options.overwrite && writes_to_reference(job.options) && checkpoint.digests_from == "manifest";
  job.report["manifest"] = {{"path", output}, {"written", !stays}};
  if (stays) return job.console.say(fmt::format("manifest {} is there and holds", output));
  SaveOptions const save{.overwrite = job.options.overwrite, .call = job.call()};
  auto const seconds =
      job.timed("manifest", [&] { rankslice::write_manifest(checkpoint, verified.read, output, job.world, save); });
  job.console.say(fmt::format("manifest {:.2f} s  {}: {} in {}", seconds, output,
                              counted(checkpoint.model.tensors.size(), "tensor"),
                              counted(checkpoint.hf.files.size(), "file")));
}

}  // namespace rankslice::cli

#include "rankslice/manifest.hpp"

#include <algorithm>

#include "checkpoint_manifest.hpp"
#include "io/file.hpp"
#include "io/staged_output.hpp"

namespace rankslice {

namespace {

void require_whole_folder(Checkpoint const& checkpoint, Digests const& digests) {
  if (checkpoint.format != CheckpointFormat::huggingface) {
    throw UsageError(checkpoint.path + ": a manifest is of a folder of safetensors files, which this is not");
  }
  if (checkpoint.hf.headers != HeaderOrigin::source) {
    throw UsageError(checkpoint.path + ": a manifest is of a whole checkpoint, and this is a selection of its tensors");
  }
  if (digests.without_codes || digests.source.tensors() != checkpoint.model.tensors.size()) {
    throw UsageError(checkpoint.path + ": a manifest needs the digests of all its tensors, as its files have them");
  }
}

void write_text(std::string const& text, std::string const& path, bool overwrite) {
  auto const bytes = std::as_bytes(std::span(text));
  StagedOutput output(path, StagedOutput::Kind::file, overwrite);
  auto writer = FileWriter::create(output.path());
  writer.write(bytes, 0);
  writer.sync();
  writer.close();
  if (!std::ranges::equal(read_file(output.path(), bytes.size()), bytes)) {
    throw VerifyError(path + ": reads back differently from what was written", path);
  }
  output.publish();
}

}  // namespace

void write_manifest(Checkpoint const& checkpoint, Digests const& digests, std::string const& path, Communicator& world,
                    SaveOptions const& options) {
  on_every_rank(world, [&] {
    require_whole_folder(checkpoint, digests);
    if (world.rank() != 0) return;
    if (options.call.stop.stop_requested()) throw Interrupted();
    write_text(to_text(make_manifest(checkpoint, digests.source), path), path, options.overwrite);
  });
}

}  // namespace rankslice

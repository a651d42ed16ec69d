#include "synth/synth.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <system_error>
#include <utility>
#include <vector>

#include "rankslice/error.hpp"

#include "core/literals.hpp"
#include "format/hf_index.hpp"
#include "format/hub_files.hpp"
#include "format/safetensors.hpp"
#include "io/file.hpp"
#include "io/staged_output.hpp"
#include "synth/chosen_model.hpp"
#include "synth/hub_index.hpp"
#include "synth/presets.hpp"
#include "synth/side_files.hpp"
#include "synth/values.hpp"

namespace rankslice {

namespace {

constexpr std::uint64_t kPieceBytes = 1_MiB;  // stays in the cache between the generator and the kernel's copy

/// The size without the blocks.
void make_sparse(std::string const& path, std::uint64_t size) {
  std::error_code error;
  std::filesystem::resize_file(path, size, error);
  if (!error) return;
  throw IoError(
      ExitCode::cannot_create,
      fmt::format("{}: a file of {} bytes cannot be here, even without its blocks: {}", path, size, error.message()),
      path);
}

void write_text(std::string const& path, std::string_view text) {
  auto writer = FileWriter::create(path);
  writer.write(std::as_bytes(std::span(text)), 0);
  writer.sync();
  writer.close();
}

/// Writes the safetensors files of one checkpoint, piece by piece through one buffer.
class WeightWriter {
 public:
  WeightWriter(SynthOptions const& options, std::uint64_t total_bytes)
      : options_(options), total_(total_bytes), piece_(std::make_unique<std::byte[]>(kPieceBytes)) {}

  void write_file(std::string const& path, HubFile const& file) {
    auto const header_bytes = make_safetensors_header(file.tensors, {{"format", "pt"}});
    auto const size = header_bytes.size() + tensor_bytes(file.tensors);
    auto writer = FileWriter::create(path);
    if (options_.headers_only) {
      make_sparse(path, size);
      writer.write(header_bytes, 0);
      advance(size - header_bytes.size());
    } else {
      writer.allocate(size);
      writer.write(header_bytes, 0);
      for (auto const& tensor : parse_safetensors_header(header_bytes, size, file.name).tensors) {
        write_values(writer, tensor);
      }
    }
    writer.sync();
    writer.close();
  }

 private:
  void write_values(FileWriter& writer, SafetensorsHeader::Tensor const& tensor) {
    SyntheticValues const values(options_.seed, tensor.name, tensor.dtype);
    for (std::uint64_t first = 0; first < tensor.bytes.size(); first += kPieceBytes) {
      std::span const piece(piece_.get(), std::min(kPieceBytes, tensor.bytes.size() - first));
      values.fill(first, piece);
      writer.write(piece, tensor.bytes.begin + first);
      advance(piece.size());
    }
  }

  void advance(std::uint64_t bytes) {
    if (options_.call.stop.stop_requested()) throw Interrupted();
    done_ += bytes;
    if (options_.call.progress) options_.call.progress({"synth", done_, total_});
  }

  SynthOptions const& options_;
  std::uint64_t done_ = 0, total_;
  std::unique_ptr<std::byte[]> piece_;
};

}  // namespace

SynthReport synthesize(std::string const& out_dir, SynthOptions const& options) {
  auto const& preset = find_preset(options.family, options.preset);
  auto const model = chosen_model(preset, options);
  auto const files = files_of(preset, model);
  SynthReport report{.family = std::string(name(model.family)), .files = files.size()};
  for (auto const& file : files) {
    report.tensors += file.tensors.size();
    report.bytes += tensor_bytes(file.tensors);
  }
  if (options.dry_run) return report;

  StagedOutput output(out_dir, StagedOutput::Kind::folder, options.overwrite);
  std::filesystem::path const folder(output.path());
  WeightWriter weights(options, report.bytes);
  for (auto const& file : files) weights.write_file(folder / file.name, file);
  for (auto const& file : side_files(model)) write_text(folder / file.name, file.text);
  if (files.size() > 1) write_text(folder / kIndexName, index_json(files, model.layout));
  output.publish();
  return report;
}

}  // namespace rankslice

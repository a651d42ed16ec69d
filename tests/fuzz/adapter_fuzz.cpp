// Input, separated by lines of `---`:
//   EP_REPLICATE EP_SHARD EP, the layout of grouped experts, `text`, `whole` or `auto`, a part of the keys to be
//   selected a config.json as it is tensors, a line KEY DTYPE AXIS… for each; a line `+` begins another file an index
//   as it is; may be absent

#include <fmt/format.h>
#include <simdjson.h>

#include <charconv>
#include <optional>

#include "checkpoint_parts.hpp"
#include "core/checked.hpp"
#include "format/hf_index.hpp"
#include "format/safetensors.hpp"
#include "fuzz/fuzz.hpp"
#include "fuzz/model_checks.hpp"
#include "support/raw_safetensors.hpp"

namespace {

using namespace rankslice;
using namespace rankslice::fuzz;

using Tensor = SafetensorsHeader::Tensor;

constexpr std::string_view kNextPart = "\n---\n";
constexpr std::uint64_t kLargestFile = std::uint64_t{1} << 60;  // so that no sum over a dozen files overflows
constexpr std::size_t kMostFiles = 12;

template <typename Number>
std::optional<Number> take_number(std::string_view& line) {
  auto const word = take_until(line, " ");
  Number number{};
  auto const [end, error] = std::from_chars(word.data(), word.data() + word.size(), number);
  return error == std::errc{} && end == word.data() + word.size() ? std::optional(number) : std::nullopt;
}

struct Options {
  Mesh mesh;
  ExpertLayout layout = ExpertLayout::automatic;
  std::optional<bool> text_only;
  std::optional<DType> dtype;
  std::string_view selected;
};

/// A mesh of 1 to 4 along each dimension.
std::optional<Options> options_of(std::string_view line) {
  auto const size = [&] { return std::clamp(take_number<int>(line).value_or(1), 1, 4); };
  Options options;
  options.mesh = {.ep_replicate = size(), .ep_shard = size(), .ep = size()};
  auto const layout = parse_expert_layout(take_until(line, " "));
  if (!layout) return std::nullopt;
  options.layout = *layout;
  auto const form = take_until(line, " ");
  if (form != "auto") options.text_only = form == "text";
  options.dtype = parse_dtype(take_until(line, " "));
  options.selected = line;
  return options;
}

std::optional<Tensor> tensor_of(std::string_view line) {
  Tensor tensor;
  tensor.name = take_until(line, " ");
  auto const dtype = parse_dtype(take_until(line, " "));
  if (!dtype || !simdjson::validate_utf8(tensor.name)) return std::nullopt;
  tensor.dtype = *dtype;
  while (!line.empty()) {
    auto const axis = take_number<std::uint64_t>(line);
    if (!axis) return std::nullopt;
    tensor.shape.push_back(*axis);
  }
  return tensor;
}

/// Nothing when the tensors cannot be those of one file.
std::optional<HfFile> file_of(std::string name, std::vector<Tensor> tensors) {
  std::uint64_t bytes = 0;
  for (auto const& tensor : tensors) {
    auto const size = checked_byte_size(tensor.dtype, tensor.shape);
    if (!size || *size > kLargestFile - bytes) return std::nullopt;
    bytes += *size;
  }
  auto header = make_safetensors_header(std::move(tensors), {});
  return HfFile{.name = std::move(name), .size = header.size() + bytes, .header = std::move(header)};
}

std::optional<std::vector<HfFile>> files_of(std::string_view text) {
  std::vector<std::vector<Tensor>> tensors(1);
  while (!text.empty()) {
    auto const line = take_until(text, "\n");
    if (line == "+") {
      tensors.emplace_back();
      continue;
    }
    auto tensor = tensor_of(line);
    if (!tensor) return std::nullopt;
    tensors.back().push_back(std::move(*tensor));
  }
  if (tensors.size() > kMostFiles) return std::nullopt;
  std::vector<HfFile> files;
  for (auto& of_file : tensors) {
    auto file = file_of(fmt::format("model-{:05}.safetensors", files.size() + 1), std::move(of_file));
    if (!file) return std::nullopt;
    files.push_back(std::move(*file));
  }
  return files;
}

/// Nothing for a text of another form.
std::optional<CheckpointParts> parts_of(Options const& options, std::string_view text) {
  CheckpointParts parts;
  parts.path = parts.hf_folder = "/checkpoint";
  parts.expert_layout = options.layout;
  parts.text_only = options.text_only;
  parts.dtype = options.dtype;
  parts.hf.config = test::bytes_of(take_until(text, kNextPart));
  auto files = files_of(take_until(text, kNextPart));
  if (!files) return std::nullopt;
  parts.hf.files = std::move(*files);
  parts.hf.index = test::bytes_of(text);
  if (!text.empty()) parts.hf.index_name = kIndexName;
  return parts;
}

void require_sound(Checkpoint const& checkpoint, Mesh const& mesh) {
  require_filled(checkpoint.catalog, checkpoint.model);
  require_plans(checkpoint, mesh);
  require_way_back(checkpoint);
}

void run(Options const& options, CheckpointParts const& parts) {
  auto const checkpoint = std::make_shared<Checkpoint const>(assemble(parts));
  require(assemble(unpack(pack(parts))).model.parameters == checkpoint->model.parameters, "all ranks open the same");
  require_sound(*checkpoint, options.mesh);
  auto const key_is_taken = [&](std::string_view key) { return key.find(options.selected) != std::string_view::npos; };
  std::shared_ptr<Checkpoint const> selected;
  if (!accepts([&] { selected = select_tensors(checkpoint, key_is_taken); })) return;
  require_filled(selected->catalog, selected->model);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  auto text = text_of(data, size);
  auto const options = options_of(take_until(text, kNextPart));
  if (!options) return 0;
  (void)accepts([&] {
    if (auto const parts = parts_of(*options, text)) run(*options, *parts);
  });
  return 0;
}

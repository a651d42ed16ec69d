#include "facts/oddities.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <set>

#include "facts/words.hpp"
#include "model/family.hpp"

namespace rankslice {

namespace {

using Odd = std::vector<std::string>;

void look_at_files(HfLayout const& hf, Odd& odd) {
  if (hf.index_name.empty() && hf.files.size() > 1) {
    odd.push_back(fmt::format("no index: nothing but their names says that the {} files are all", hf.files.size()));
  }
  auto const unaligned =
      std::ranges::count_if(hf.files, [](HfFile const& file) { return file.header.size() % 8 != 0; });
  if (unaligned > 0) {
    odd.push_back(fmt::format("in {} of {} the tensor data begin at an address that is no multiple of 8", unaligned,
                              counted(hf.files.size(), "file")));
  }
}

void look_at_layers(Checkpoint const& checkpoint, ModelConfig const& config, Odd& odd) {
  if (config.layers == 0) return;
  auto const& keys = find_family(checkpoint.family, {}).keys;
  std::set<std::uint64_t> beyond;
  for (auto const& parameter : checkpoint.model.parameters) {
    auto const stacked = find_stacked(keys, parameter.fqn);
    if (!stacked || stacked->rule->stack != Stack::decoder) continue;
    std::uint64_t layer = 0;
    std::from_chars(stacked->layer.data(), stacked->layer.data() + stacked->layer.size(), layer);
    if (layer >= config.layers) beyond.insert(layer);
  }
  if (beyond.empty()) return;
  odd.push_back(fmt::format("config.json has num_hidden_layers = {}, but there are experts of layer {} too",
                            config.layers, *beyond.rbegin()));
}

void look_at_dtypes(Checkpoint const& checkpoint, ModelConfig const& config, Odd& odd) {
  auto const& tensors = checkpoint.model.tensors;
  auto const quantised = std::ranges::any_of(tensors, [](HfTensor const& tensor) { return tensor.scales.has_value(); });
  if (quantised && config.quantisation.method.empty()) {
    odd.emplace_back(
        "weights are quantised, but config.json has no quantization_config: others may take the codes for "
        "values");
  }
  // Rules 5a, 57: the Hub's Qwen3.5 has it in F32, Qwen3-Next not.
  auto const is_narrow = [&](HfTensor const& tensor) {
    return checkpoint.family.starts_with("qwen3_5_moe") && tensor.key.ends_with(".A_log") && tensor.dtype != DType::F32;
  };
  auto const narrow = std::ranges::find_if(tensors, is_narrow);
  if (narrow != tensors.end()) {
    odd.push_back(fmt::format("A_log is {}, as transformers writes it; on the Hub it is F32", name(narrow->dtype)));
  }
  auto const empty =
      std::ranges::count_if(tensors, [](HfTensor const& tensor) { return element_count(tensor.shape) == 0; });
  if (empty > 0) odd.push_back(counted(static_cast<std::uint64_t>(empty), "tensor") + " without any element");
}

}  // namespace

Odd oddities(Checkpoint const& checkpoint) {
  auto odd = checkpoint.warnings;
  auto const& hf = checkpoint.hf;
  ModelConfig config;
  if (hf.config.empty()) {
    odd.emplace_back("no config.json: sizes are taken from the tensors alone");
  } else {
    config = parse_model_config(hf.config);
    look_at_layers(checkpoint, config, odd);
  }
  look_at_files(hf, odd);
  look_at_dtypes(checkpoint, config, odd);
  return odd;
}

}  // namespace rankslice

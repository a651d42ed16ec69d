#include "fresh_source.hpp"

#include <set>
#include <utility>

#include "format/fresh_layout.hpp"

namespace rankslice {

void add_fresh_files(CheckpointParts& parts, FreshOptions const& options, std::uint64_t max_file_bytes) {
  std::set<std::string_view> seen;
  std::vector<NativeTensor> natives;
  for (auto const& native : parts.native) {
    if (seen.insert(native.fqn).second) natives.push_back({native.fqn, native.dtype, native.shape});
  }
  auto const model = make_fresh_model(find_family(parts.family, {}), natives, options);
  std::vector<SafetensorsHeader::Tensor> tensors;
  for (auto const& tensor : model.tensors) {
    tensors.push_back({tensor.key, model.parameters[tensor.parameter].dtype, tensor.shape, {}});
  }
  parts.hf = make_fresh_layout(std::move(tensors), max_file_bytes);
  parts.hf.headers = HeaderOrigin::state;
  parts.expert_layout = options.expert_layout;
}

FreshOptions expert_forms(Checkpoint const& checkpoint) {
  FreshOptions forms;
  auto const& keys = find_family(checkpoint.family, {}).keys;
  for (auto const& parameter : checkpoint.model.parameters) {
    auto const stacked = find_stacked(keys, parameter.fqn);
    if (!stacked) continue;
    auto const grouped = checkpoint.model.tensors[parameter.tensors.front()].shape.size() == parameter.shape.size();
    if (!grouped && stacked->rule->stack == Stack::mtp) forms.mtp_experts = ExpertForm::split;
    auto const as_hub = parameter.layout == stacked->rule->grouped_layout(ExpertLayout::hub);
    if (grouped && !as_hub) forms.expert_layout = ExpertLayout::transformers;
  }
  return forms;
}

}  // namespace rankslice

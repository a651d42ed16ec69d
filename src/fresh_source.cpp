#include "fresh_source.hpp"

#include <fmt/format.h>
#include <simdjson.h>

#include <map>
#include <utility>

#include "rankslice/error.hpp"

#include "format/fresh_layout.hpp"
#include "format/quote.hpp"
#include "model/exported_form.hpp"

namespace rankslice {

namespace {

/// By FQN, so that files are filled alike whatever the order of `listed`.
std::vector<NativeTensor> each_once(std::vector<CheckpointParts::Native> const& listed) {
  std::map<std::string_view, CheckpointParts::Native const*> by_fqn;
  for (auto const& native : listed) by_fqn.emplace(native.fqn, &native);
  std::vector<NativeTensor> natives;
  for (auto const& [fqn, native] : by_fqn) {
    if (!simdjson::validate_utf8(fqn.data(), fqn.size())) {
      throw FormatError(fmt::format("{}: the name is no UTF-8", in_quotes(fqn)), {}, in_quotes(fqn));
    }
    natives.push_back({native->fqn, native->dtype, native->shape});
  }
  return natives;
}

}  // namespace

void add_fresh_files(CheckpointParts& parts, FreshOptions const& options, std::uint64_t max_file_bytes) {
  auto const model = make_fresh_model(find_family(parts.family, {}, parts.text_only), each_once(parts.native), options);
  std::vector<SafetensorsHeader::Tensor> tensors;
  for (auto const& tensor : model.tensors) {
    tensors.push_back({tensor.key, tensor.dtype, tensor.shape, {}});
  }
  parts.hf = make_fresh_layout(std::move(tensors), max_file_bytes);
  parts.hf.headers = HeaderOrigin::state;
  parts.expert_layout = options.expert_layout;
}

FreshOptions expert_forms(Checkpoint const& checkpoint) {
  auto const& keys = find_family(checkpoint.family, {}).keys;
  auto const form_of = [&](Stack stack) {
    return exported_form(keys, stack, find_held_experts(checkpoint.model, stack));
  };
  FreshOptions forms{.decoder_experts = form_of(Stack::decoder), .mtp_experts = form_of(Stack::mtp)};
  for (auto const& parameter : checkpoint.model.parameters) {
    auto const stacked = find_stacked(keys, parameter.fqn);
    if (!stacked) continue;
    auto const grouped = checkpoint.model.tensors[parameter.tensors.front()].shape.size() == parameter.shape.size();
    auto const as_hub = parameter.layout == stacked->rule->grouped_layout(ExpertLayout::hub);
    if (grouped && !as_hub) forms.expert_layout = ExpertLayout::transformers;
  }
  return forms;
}

}  // namespace rankslice

#include "hf_target.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "rankslice/error.hpp"

#include "format/fresh_layout.hpp"
#include "format/hf_folder.hpp"

namespace rankslice {

std::vector<bool> taken_tensors(Model const& model, KeySelection const& keys) {
  std::vector<bool> taken;
  for (auto const& tensor : model.tensors) taken.push_back(!keys || keys(tensor.key));
  if (std::ranges::find(taken, true) != taken.end()) return taken;
  throw PlanError(fmt::format("the selection takes none of the {} tensors; {} is one of them", model.tensors.size(),
                              model.tensors.front().key));
}

TensorCatalog make_fresh_catalog(HfLayout const& layout) {
  std::vector<std::string> warnings;
  return make_catalog(layout, "fresh", warnings);
}

HfTarget make_target(Checkpoint const& source, std::vector<bool> const& taken, std::uint64_t max_file_bytes) {
  if (std::ranges::find(taken, false) == taken.end()) return {.hf = source.hf, .catalog = source.catalog};
  std::vector<SafetensorsHeader::Tensor> tensors;
  for (std::size_t i = 0; i < taken.size(); ++i) {
    auto const& tensor = source.model.tensors[i];
    if (taken[i]) tensors.push_back({tensor.key, tensor.dtype, tensor.shape, {}});
  }
  HfTarget target{.hf = make_fresh_layout(std::move(tensors), max_file_bytes), .catalog = {}};
  target.hf.headers = HeaderOrigin::selection;
  target.hf.config = source.hf.config;
  target.hf.side_files = source.hf.side_files;
  target.hf.left_out = source.hf.left_out;
  target.catalog = make_fresh_catalog(target.hf);
  return target;
}

}  // namespace rankslice

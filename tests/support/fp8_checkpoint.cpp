#include "support/fp8_checkpoint.hpp"

#include <vector>

#include "support/model_catalog.hpp"
#include "support/raw_checkpoint.hpp"

namespace rankslice::test {

void write_fp8_checkpoint(std::string const& folder) {
  auto shape = tiny_qwen35();
  shape.experts_form = shape.mtp_form = ExpertForm::split;
  TensorCatalog catalog{.files = {{.name = "one", .path = {}, .size = 0}}, .tensors = {}};
  std::vector<std::string> weights;
  for (auto const& tensor : make_catalog(shape).tensors) {
    auto const is_quantised = tensor.name.find("_proj.weight") != std::string::npos;
    append_tensor(catalog, tensor.name, is_quantised ? DType::F8_E4M3 : tensor.dtype, tensor.shape);
    if (is_quantised) weights.push_back(tensor.name);
  }
  for (auto const& name : weights) append_tensor(catalog, name + "_scale_inv", DType::F32, {1, 1});
  auto config = make_config_json(shape);
  config.insert(1, R"("quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}, )");
  write_checkpoint(folder, catalog, config);
}

}  // namespace rankslice::test

#include "support/hand_model.hpp"

#include <fmt/format.h>

#include "support/model_catalog.hpp"

namespace rankslice::test {

namespace {

std::uint32_t append_parameter(Model& model, Parameter const& parameter) {
  model.parameters.push_back(parameter);
  return static_cast<std::uint32_t>(model.parameters.size() - 1);
}

/// The next tensor of a parameter.
void append_part(Model& model, HfTensor const& tensor) {
  model.parameters[tensor.parameter].tensors.push_back(static_cast<std::uint32_t>(model.tensors.size()));
  model.tensors.push_back(tensor);
}

Parameter stacked(std::string const& fqn, Shape const& shape, Layout layout) {
  return {.fqn = fqn, .shape = shape, .layout = layout, .stacked_experts = true, .tensors = {}};
}

}  // namespace

void append_dense(Model& model, std::string const& name, DType hf_dtype, DType dtype, Shape const& shape) {
  auto const index =
      append_parameter(model, {.fqn = name, .hf_dtype = hf_dtype, .dtype = dtype, .shape = shape, .tensors = {}});
  append_part(model, {.key = name, .dtype = hf_dtype, .shape = shape, .parameter = index});
}

void append_grouped(Model& model, std::string const& key, Shape const& shape, Layout layout) {
  auto const index = append_parameter(model, stacked(key + "s", shape, layout));
  auto const hf_shape = layout == Layout::same ? shape : Shape{shape[0], shape[2], shape[1]};
  append_part(model,
              {.key = key, .shape = hf_shape, .parameter = index, .experts = {0, shape[0]}, .columns = {0, shape[2]}});
}

void append_split(Model& model, std::string const& module, std::uint64_t experts, std::uint64_t hidden,
                  std::uint64_t intermediate) {
  auto const down =
      append_parameter(model, stacked(module + ".down_projs", {experts, intermediate, hidden}, Layout::swapped));
  auto const gate_up = append_parameter(
      model, stacked(module + ".gate_and_up_projs", {experts, hidden, 2 * intermediate}, Layout::swapped));
  for (std::uint64_t expert = 0; expert < experts; ++expert) {
    auto const append = [&](std::string const& projection, std::uint32_t parameter, Shape const& shape, Range columns) {
      append_part(model, {.key = fmt::format("{}.{}.{}_proj.weight", module, expert, projection),
                          .shape = shape,
                          .parameter = parameter,
                          .experts = {expert, expert + 1},
                          .columns = columns});
    };
    append("down", down, {hidden, intermediate}, {0, hidden});
    append("gate", gate_up, {intermediate, hidden}, {0, intermediate});
    append("up", gate_up, {intermediate, hidden}, {intermediate, 2 * intermediate});
  }
}

Model split_model(std::uint64_t experts, std::uint64_t hidden, std::uint64_t intermediate) {
  Model model;
  append_dense(model, "lm_head.weight", DType::BF16, DType::BF16, {3, hidden});
  std::string const decoder = "model.language_model.layers.0.mlp.experts";
  append_grouped(model, decoder + ".down_proj", {experts, intermediate, hidden});
  append_grouped(model, decoder + ".gate_up_proj", {experts, hidden, 2 * intermediate});
  model.parameters.back().fqn = decoder + ".gate_and_up_projs";
  append_split(model, "mtp.layers.0.mlp.experts", experts, hidden, intermediate);
  append_dense(model, "mtp.norm.weight", DType::BF16, DType::BF16, {hidden});
  return model;
}

TensorCatalog catalog_of(Model const& model, std::uint64_t first_byte) {
  TensorCatalog catalog{.files = {{.name = "model.safetensors", .path = "model.safetensors", .size = first_byte}},
                        .tensors = {}};
  for (auto const& tensor : model.tensors) append_tensor(catalog, tensor.key, tensor.dtype, tensor.shape);
  return catalog;
}

}  // namespace rankslice::test

#include "synth/block_fp8.hpp"

#include <algorithm>
#include <array>

#include "core/block_scales.hpp"

namespace rankslice {

namespace {

using Tensor = SafetensorsHeader::Tensor;

constexpr std::array<std::string_view, 11> kMatrices{
    ".self_attn.q_proj.weight",         ".self_attn.k_proj.weight",        ".self_attn.v_proj.weight",
    ".self_attn.o_proj.weight",         ".linear_attn.in_proj_qkv.weight", ".linear_attn.in_proj_z.weight",
    ".linear_attn.in_proj_qkvz.weight", ".linear_attn.out_proj.weight",    ".shared_expert.gate_proj.weight",
    ".shared_expert.up_proj.weight",    ".shared_expert.down_proj.weight",
};

}  // namespace

bool is_in_fp8(std::string_view key, Architecture const& kind) {
  if (key.starts_with("mtp.") && !kind.fp8_mtp) return false;
  return key.find(".mlp.experts.") != std::string_view::npos ||
         std::ranges::any_of(kMatrices, [key](auto const matrix) { return key.ends_with(matrix); });
}

std::vector<Tensor> in_block_fp8(std::vector<Tensor> const& tensors, Architecture const& kind) {
  std::vector<Tensor> stored;
  for (auto const& tensor : tensors) {
    stored.push_back(tensor);
    if (!is_in_fp8(tensor.name, kind)) continue;
    stored.back().dtype = DType::F8_E4M3;
    stored.push_back({tensor.name + "_scale_inv", kind.fp8_scales, scales_shape(tensor.shape), {}});
  }
  return stored;
}

}  // namespace rankslice

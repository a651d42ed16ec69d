#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "model/family.hpp"

namespace rankslice {

/// A tensor of a state dict without a source.
struct NativeTensor {
  std::string fqn;
  DType dtype = DType::BF16;
  Shape shape;  ///< Global, native.
};

/// How a checkpoint holds the experts of a layer.
enum class ExpertForm : std::uint8_t { grouped, split };

/// Rule 28: the names of the MTP's, in any case and with `_` or `-`: `split`, `per-expert`, `per-expert-safetensors`;
/// `grouped`, `group`. @throws UsageError for others
[[nodiscard]] ExpertForm parse_expert_form(std::string_view name);

/// "grouped", "split"
[[nodiscard]] std::string_view name(ExpertForm form);

struct FreshOptions {
  ExpertLayout expert_layout = ExpertLayout::hub;  ///< Of grouped experts; `automatic` is the Hub's.
  ExpertForm mtp_experts = ExpertForm::grouped;
};

/// The Hugging Face tensors that native ones become when no source says how they were (rules 24, 45-49): parameters and
/// tensors in the order of `tensors`, of split experts one expert after the other, gate before up. Dtypes are kept.
/// Pure.
/// @throws FormatError for stacked experts of the wrong axes, and for names that meet in one key or do not come back
/// from theirs
[[nodiscard]] Model make_fresh_model(Family const& family, std::vector<NativeTensor> const& tensors,
                                     FreshOptions const& options = {});

}  // namespace rankslice

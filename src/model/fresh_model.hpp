#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "model/family.hpp"

namespace rankslice {

/// How the Hugging Face checkpoint holds what it may hold in several ways.
struct FreshOptions {
  ExpertLayout expert_layout = ExpertLayout::hub;  ///< Of grouped experts; `automatic` is the Hub's.
  std::optional<ExpertForm> decoder_experts{};     ///< Empty: as the family's table says.
  std::optional<ExpertForm> mtp_experts{};         ///< Likewise.
  /// By FQN, of tensors whose dtype is another one than natively; heeded for those that training keeps in F32.
  std::map<std::string, DType> hf_dtypes{};
};

/// The Hugging Face tensors that native ones become when no source says how they were (rules 24, 45-49): parameters and
/// tensors in the order of `tensors`, of split experts one expert after the other, gate before up. Dtypes are kept,
/// but for those that the options name. Pure.
/// @throws FormatError for stacked experts of the wrong axes or of no elements, and for names that meet in one key or
/// do not come back from theirs
[[nodiscard]] Model make_fresh_model(Family const& family, std::vector<NativeTensor> const& tensors,
                                     FreshOptions const& options = {});

}  // namespace rankslice

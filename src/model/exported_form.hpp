#pragma once

#include <optional>

#include "model/key_table.hpp"

namespace rankslice {

/// How a checkpoint holds the experts of a stack: all in one form (rules 26, 27).
struct HeldExperts {
  ExpertForm form = ExpertForm::grouped;
  bool quantised = false;  ///< Those of one layer at least.
};

/// Nothing when a model has no experts in a stack. Pure.
[[nodiscard]] std::optional<HeldExperts> find_held_experts(Model const& model, Stack stack);

/// The form in which an export that has no block scales holds the experts of a stack, one for all layers (rules 26,
/// 27): as they are held, but of decoders of which any are quantised one by one, and of what nobody holds, as in the
/// family's releases (rules 44, 50). Pure.
[[nodiscard]] ExpertForm exported_form(KeyTable const& table, Stack stack, std::optional<HeldExperts> const& held);

}  // namespace rankslice

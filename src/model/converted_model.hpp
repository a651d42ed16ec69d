#pragma once

#include <optional>

#include "model/family.hpp"

namespace rankslice {

/// The dtype in which parameters that training keeps in F32 are exported (rules 55, 57).
enum class Fp32HeldDtype : std::uint8_t { of_source, f32 };

/// The Hugging Face tensors of an export of values that were converted, when the source's own tensors cannot hold them:
/// every parameter, under its number, in the dtype that the state has it in; no block scales; decoder experts that were
/// split, and quantised in any layer, as grouped ones, where releases of their family have such (rules 46, 50), under
/// the spelling of their keys. Everything else keeps keys and form. Tensors are in the order of the source's. Nothing
/// when the source's own tensors will do: what rule 55 alone has widened goes back as it was. Pure.
/// @throws FormatError when two tensors would have one key; PlanError for what rule 55 speaks of when it is to be
/// exported in F32 and is not held so
[[nodiscard]] std::optional<Model> make_converted_model(Family const& family, Model const& source,
                                                        Fp32HeldDtype fp32_held);

/// The dtype of what was converted other than by rule 55; nothing when nothing was.
[[nodiscard]] std::optional<DType> converted_dtype(Family const& family, Model const& source);

}  // namespace rankslice

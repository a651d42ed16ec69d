#pragma once

#include <string>
#include <vector>

#include "rankslice/checkpoint.hpp"

#include "facts/words.hpp"

namespace rankslice {

/// How the Hugging Face checkpoint holds its experts: `decoder_experts` and `mtp_experts`, each `grouped`, `split` or
/// `none`, and `expert_layout`, `hub` or `transformers` where the family has both, else null.
[[nodiscard]] Json summarize_layout(Checkpoint const& checkpoint);

/// Which of its weights are quantised, by counting: `method` is `block-fp8` or `none`.
[[nodiscard]] Json summarize_quantisation(Checkpoint const& checkpoint);

/// What is done to values between the Hugging Face checkpoint and memory: a list of `kind` (`held_in_f32`,
/// `dequantised`, `cast`), `from`, `to`, `tensors` without scales, and `because` of what. `asked`: with `--dtype`, of
/// which other dtypes than the default tell by themselves.
[[nodiscard]] Json summarize_conversions(Checkpoint const& checkpoint, bool asked);

/// What `to-hf` makes of it by default: `values` as they were `read`, or as they are `held`, and
/// how.
[[nodiscard]] Json summarize_export(Checkpoint const& checkpoint);

/// The same for people.
[[nodiscard]] std::string layout_line(Json const& layout);
[[nodiscard]] std::vector<std::string> quantisation_lines(Json const& quantisation);
[[nodiscard]] std::vector<std::string> conversion_lines(Json const& conversions);
[[nodiscard]] std::vector<std::string> export_lines(Json const& exported, Json const& conversions);

/// What loading does to values, but for what training needs of every checkpoint.
[[nodiscard]] std::vector<std::string> value_lines(Json const& conversions);

}  // namespace rankslice

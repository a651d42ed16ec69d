#pragma once

#include <string>
#include <string_view>

#include "rankslice/hf_keys.hpp"
#include "rankslice/load.hpp"
#include "rankslice/mesh.hpp"

#include "facts/words.hpp"
#include "plan/plan.hpp"

namespace rankslice {

[[nodiscard]] Json mesh_json(Mesh const& mesh);

/// What every rank of a mesh reads and holds, and what loading, verifying and gathering pass between them: what
/// `rankslice plan --json` prints. `dense`: `automatic` as `each_rank`. `command`: which one asks. Pure.
[[nodiscard]] Json plan_of_all_ranks(Checkpoint const& source, Mesh const& mesh, DenseReading dense,
                                     bool asked_for_dtype, std::string_view command);
/// For people: a table of what they read and hold. Pure.
[[nodiscard]] std::string table_of_all_ranks(Checkpoint const& source, Mesh const& mesh, DenseReading dense,
                                             bool asked_for_dtype);

/// Every range of a file that one rank reads (`--rank`). Pure.
[[nodiscard]] Json plan_of_rank(Checkpoint const& source, Mesh const& mesh, DenseReading dense, int rank,
                                std::string_view command);
[[nodiscard]] std::string lines_of_rank(Checkpoint const& source, Mesh const& mesh, DenseReading dense, int rank);

/// The tensors of a block-FP8 checkpoint of the same model that one rank fills its own from (`--quantization`), each
/// judged by itself by `keys`. Pure. @throws as `load_destinations`
[[nodiscard]] Json plan_of_keys(Checkpoint const& source, Mesh const& mesh, int rank, KeySelection const& keys,
                                std::string_view command);
/// The same for people. `plan`: what `plan_of_keys` returned.
[[nodiscard]] std::string lines_of_keys(Json const& plan);

}  // namespace rankslice

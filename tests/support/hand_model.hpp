#pragma once

#include <cstdint>
#include <string>

#include "rankslice/parameter.hpp"
#include "rankslice/tensor_catalog.hpp"

namespace rankslice::test {

// Models put together by hand, parameter by parameter, without the code that maps the names of a family.

/// A replicated parameter of one tensor with the same name.
void append_dense(Model& model, std::string const& name, DType hf_dtype, DType dtype, Shape const& shape);

/// A stacked parameter of one BF16 tensor. `shape` is the native one, [E, rows, columns]; the FQN is the key with an s.
void append_grouped(Model& model, std::string const& key, Shape const& shape, Layout layout = Layout::swapped);

/// The stacked parameters of split BF16 experts, of which each has its own `{module}.{X}.{down,gate,up}_proj.weight`,
/// in this order, as the names of a file are sorted: D [E, I, H], and G [E, H, 2I] with the columns [0, I) from gate.
void append_split(Model& model, std::string const& module, std::uint64_t experts, std::uint64_t hidden,
                  std::uint64_t intermediate);

/// What Qwen3.5 has on the Hub: a dense tensor, grouped experts in a decoder layer, split ones in the MTP layer, and
/// one more dense tensor. Parameters: `lm_head.weight`, D and G of the decoder, D and G of MTP, `mtp.norm.weight`.
[[nodiscard]] Model split_model(std::uint64_t experts, std::uint64_t hidden, std::uint64_t intermediate);

/// The tensors of a model in one file, one after the other from `first_byte` on.
[[nodiscard]] TensorCatalog catalog_of(Model const& model, std::uint64_t first_byte = 0);

}  // namespace rankslice::test

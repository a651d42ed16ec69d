#pragma once

#include <string>

#include "rankslice/tensor_catalog.hpp"

namespace rankslice {

/// The two forms in which a tensor can lie on disk or in memory.
enum class Form : std::uint8_t {
  hf,      ///< As the Hugging Face checkpoint stores it.
  native,  ///< As training uses it (rule 1).
};

/// How the native form of a tensor comes from its HF form.
enum class Layout : std::uint8_t {
  same,     ///< Same axes.
  swapped,  ///< Axes 1 and 2 of a stacked tensor are exchanged (rule 3).
};

/// One tensor of the model under both its names.
struct Parameter {
  std::string hf_key;
  std::string fqn;
  DType hf_dtype = DType::BF16;  ///< In the checkpoint.
  DType dtype = DType::BF16;     ///< In the state dict; differs from `hf_dtype` for converted tensors only (rule 55).
  Shape hf_shape;                ///< Global.
  Shape shape;                   ///< Global, native.
  Layout layout = Layout::same;
  bool stacked_experts = false;  ///< Axis 0 is the experts: sharded over `ep`. All others are replicated.

  [[nodiscard]] bool converted() const { return dtype != hf_dtype; }
  [[nodiscard]] DType dtype_in(Form form) const { return form == Form::hf ? hf_dtype : dtype; }
  [[nodiscard]] Shape const& shape_in(Form form) const { return form == Form::hf ? hf_shape : shape; }
  /// Parts of a parameter are counted in experts, or, for a dense tensor, in elements (bytes for sub-byte types).
  [[nodiscard]] std::uint64_t part_count() const;
  /// Bytes of one such unit in a form.
  [[nodiscard]] std::uint64_t part_bytes(Form form) const;
};

}  // namespace rankslice

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "rankslice/tensor_catalog.hpp"

namespace rankslice {

/// The two forms in which a tensor can lie on disk or in memory.
enum class Form : std::uint8_t {
  hf,      ///< As the Hugging Face checkpoint stores it.
  native,  ///< As training uses it (rule 1).
};

/// How the matrices of a stacked tensor's experts lie in the HF checkpoint.
enum class Layout : std::uint8_t {
  same,     ///< As in the native form.
  swapped,  ///< Rows and columns are exchanged (rules 3-5).
};

/// How a family's grouped experts lie, where its checkpoints differ (rule 61).
enum class ExpertLayout : std::uint8_t {
  automatic,     ///< By the shapes; where they do not tell, it must be said.
  hub,           ///< As on the Hub.
  transformers,  ///< As transformers writes them.
};

/// "auto", "hub", "transformers"
[[nodiscard]] std::string_view name(ExpertLayout layout);
/// The inverse of `name`; nothing for an unknown one.
[[nodiscard]] std::optional<ExpertLayout> parse_expert_layout(std::string_view name);

/// How a checkpoint holds the experts of a layer.
enum class ExpertForm : std::uint8_t {
  grouped,  ///< All experts in one tensor for each projection.
  split,    ///< Each expert's matrices in tensors of their own.
};

/// "grouped", "split"
[[nodiscard]] std::string_view name(ExpertForm form);
/// The inverse of `name`; nothing for an unknown one.
[[nodiscard]] std::optional<ExpertForm> parse_expert_form(std::string_view name);

/// What somebody holds, reads or writes of a parameter.
struct Slice {
  Range part;        ///< Experts of a stacked tensor, elements of a dense one (bytes for sub-byte types).
  Range rows{0, 1};  ///< Of each such expert, along native axis 1 (rule 14); of a dense tensor always {0, 1}.

  [[nodiscard]] std::uint64_t size() const { return part.size() * rows.size(); }
  [[nodiscard]] bool empty() const { return part.empty() || rows.empty(); }
  auto operator<=>(Slice const&) const = default;
};

/// What both slices have; empty when they have nothing in common.
[[nodiscard]] Slice intersection(Slice const& a, Slice const& b);

/// "[2, 4) × [0, 1024)"
[[nodiscard]] std::string to_string(Slice const& slice);

/// A tensor of the Hugging Face checkpoint and the box of a parameter that it fills: all of it; of split experts, one
/// expert's gate, up or down matrix. Block scales belong to the box of their weight.
struct HfTensor {
  std::string key;
  DType dtype = DType::BF16;
  Shape shape;
  std::uint32_t parameter = 0;  ///< In `Model::parameters`.
  Range experts{0, 1};          ///< On native axis 0 of a stacked parameter.
  Range columns{0, 1};          ///< On native axis 2 of a stacked parameter.
  /// Of quantised weights: their block scales, in `Model::tensors` (rule 58).
  std::optional<std::uint32_t> scales{};
  bool is_scales = false;  ///< The block scales of a weight, which fill nothing themselves.
};

/// What is known of a tensor of a model that was not loaded from a checkpoint.
struct NativeTensor {
  std::string fqn;
  DType dtype = DType::BF16;
  Shape shape;  ///< Global, native.
};

/// A tensor of the model in its native form.
struct Parameter {
  std::string fqn;
  DType hf_dtype = DType::BF16;  ///< In the checkpoint.
  DType dtype = DType::BF16;     ///< In the state dict; another one than `hf_dtype` for converted tensors only.
  Shape shape;                   ///< Global, native.
  Layout layout = Layout::same;
  bool stacked_experts = false;  ///< Axis 0 is the experts: sharded over the mesh. All others are replicated.
  /// What it is made of, in `Model::tensors`, by (experts, columns); without their scales.
  std::vector<std::uint32_t> tensors;
  std::uint64_t scale_bytes = 0;  ///< Of all block scales of its tensors; each expert has the same part of them.

  bool operator==(Parameter const&) const = default;
  /// Whether its values are computed from those in the checkpoint: `--dtype`, rule 55, rule 58.
  [[nodiscard]] bool converted() const { return dtype != hf_dtype; }
  /// Whether its values give the checkpoint's back exactly: those that are not converted, or only widened.
  [[nodiscard]] bool invertible() const;
  [[nodiscard]] DType dtype_in(Form form) const { return form == Form::hf ? hf_dtype : dtype; }

  /// A slice in numbers: `part_count` experts or elements, `row_count` rows of `row_bytes` in each.
  [[nodiscard]] std::uint64_t part_count() const;
  [[nodiscard]] std::uint64_t row_count() const;
  [[nodiscard]] std::uint64_t columns() const;
  [[nodiscard]] std::uint64_t row_bytes(Form form) const { return columns() * unit_bytes(form); }
  /// Bytes of an element; 1 for sub-byte types, which are moved as bytes.
  [[nodiscard]] std::uint64_t unit_bytes(Form form) const;
  [[nodiscard]] Slice whole() const { return {.part = {0, part_count()}, .rows = {0, row_count()}}; }
  [[nodiscard]] std::uint64_t bytes(Slice const& slice, Form form) const { return slice.size() * row_bytes(form); }

  /// Bytes of the block scales that are read with a slice: of an expert, or a dense tensor, all of them.
  [[nodiscard]] std::uint64_t scale_bytes_for(Slice const& slice, Form form) const;

  /// What is read of a file in `form` to get at a slice: where its rows are columns of the file and run for less than
  /// 64 KiB at a time, the file's rows are read whole.
  [[nodiscard]] Slice read_for(Slice const& wanted, Form form) const;
};

/// The tensors of a checkpoint under both their names.
struct Model {
  std::vector<HfTensor> tensors;      ///< As `TensorCatalog::tensors`.
  std::vector<Parameter> parameters;  ///< By their first tensor.

  /// A key to name a parameter by in messages: that of its first tensor.
  [[nodiscard]] std::string const& key_of(Parameter const& parameter) const {
    return tensors[parameter.tensors.front()].key;
  }
};

}  // namespace rankslice

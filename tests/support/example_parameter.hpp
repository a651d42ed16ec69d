#pragma once

#include <cstdint>
#include <vector>

#include "rankslice/checkpoint.hpp"
#include "rankslice/parameter.hpp"

#include "support/raw_checkpoint.hpp"

namespace rankslice::test {

/// digest/1 by the definition of parts of the tensors of a parameter, by tensor.
struct ExampleDigests {
  std::vector<std::vector<std::uint64_t>> source;  ///< Of the values in the checkpoint.
  std::vector<std::vector<std::uint64_t>> stored;  ///< Of converted values (rule 55); zeros when there are none.
};

/// A parameter with random values in both its forms, and where which of them belong, all worked out element by element
/// and without the code under test.
struct ExampleParameter {
  Model model;            // of this one parameter
  std::vector<Bytes> hf;  // of each of its tensors
  Bytes native;           // of all of it

  [[nodiscard]] Parameter const& parameter() const { return model.parameters.front(); }

  /// Bytes of an element, in the checkpoint or in its native form; 1 for sub-byte types.
  [[nodiscard]] std::uint64_t element_bytes(Form form) const;
  [[nodiscard]] Slice whole() const;
  /// The native bytes of a slice: [part, rows, columns].
  [[nodiscard]] Bytes native_of(Slice const& slice) const;
  /// Which elements of one of its tensors, as the checkpoint stores it, belong to a slice.
  [[nodiscard]] std::vector<Range> hf_elements(std::uint32_t tensor, Slice const& slice) const;
  [[nodiscard]] ExampleDigests digests(Slice const& slice) const;
};

/// Not stacked, the same in both forms.
[[nodiscard]] ExampleParameter dense(DType dtype, Shape const& shape);
/// … BF16 in the checkpoint and F32 in the native form (rule 55).
[[nodiscard]] ExampleParameter converted(Shape const& shape);
/// Stacked experts [E, R, C] that are [E, C, R] in the native form.
[[nodiscard]] ExampleParameter swapped(DType dtype, Shape const& hf_shape);
/// Stacked experts that are the same in both forms.
[[nodiscard]] ExampleParameter stacked_as_is(DType dtype, Shape const& shape);
/// Experts of which each is `matrices` tensors [R, C] (gate and up, or down alone), side by side in the native form
/// [E, C, matrices · R].
[[nodiscard]] ExampleParameter split(DType dtype, std::uint64_t experts, std::uint64_t matrices, Shape const& matrix);

/// A file, and where in it the parameter lies.
struct ExampleFile {
  Bytes bytes;
  std::vector<StoredPiece> pieces;
};

/// All tensors of the parameter in the HF form; random bytes before, between and behind them, of odd counts, so that no
/// element is aligned.
[[nodiscard]] ExampleFile hf_file(ExampleParameter const& example);
/// Slices of it in the native form, likewise.
[[nodiscard]] ExampleFile native_file(ExampleParameter const& example, std::vector<Slice> const& slices);

/// The bytes of the file that hold a slice, of one of its pieces: in order, of an expert's row each.
[[nodiscard]] std::vector<Range> bytes_of_slice(ExampleParameter const& example, Form form, StoredPiece const& piece,
                                                Slice const& slice);

}  // namespace rankslice::test

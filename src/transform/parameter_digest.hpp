#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "rankslice/digest.hpp"
#include "rankslice/parameter.hpp"

#include "transform/tensor_digest.hpp"

namespace rankslice {

/// Digests one parameter from bytes in either form: each element under the HF tensor that it is of, and, when the
/// parameter is converted, under both its dtypes. Runs hold whole elements; positions count elements (bytes for
/// sub-byte types).
class ParameterDigest {
 public:
  /// `model`, which has `parameter`, outlives the result.
  ParameterDigest(Model const& model, Parameter const& parameter);

  /// Add a run of an HF tensor as the checkpoint stores it, from `first_element` of that tensor on. @throws PlanError
  /// for a run that leaves the tensor, here and below.
  void add_stored(std::uint32_t tensor, std::uint64_t first_element, std::span<std::byte const> bytes,
                  Digests& digests);
  /// The same for what it is converted to.
  void add_converted(std::uint32_t tensor, std::uint64_t first_element, std::span<std::byte const> values,
                     Digests& digests);
  /// The same for the block scales of an HF tensor.
  void add_scales(std::uint32_t tensor, std::uint64_t first_element, std::span<std::byte const> bytes,
                  Digests& digests);

  /// Add a run of the native tensor, row-major, from `first_element` of the global tensor on: what it was converted
  /// from too, if that can be computed back.
  void add_native(std::uint64_t first_element, std::span<std::byte const> bytes, Digests& digests);

 private:
  /// A digest of each of the tensors, in one of the two dtypes, and the table that it goes to.
  struct Sink {
    TensorDigest const& digest;
    DigestTable& table;
    std::uint64_t unit;  // bytes of an element
  };
  void add_native(Sink const& sink, std::uint64_t first_element, std::span<std::byte const> bytes) const;
  void add_run(Sink const& sink, std::uint32_t tensor, std::uint64_t first_element,
               std::span<std::byte const> bytes) const;

  Model const& model_;
  Parameter const& parameter_;
  TensorDigest source_;                    // of each of the tensors: they all have one shape
  std::optional<TensorDigest> converted_;  // of the converted values
  std::optional<TensorDigest> scales_;
  std::vector<std::byte> narrowed_;
};

}  // namespace rankslice

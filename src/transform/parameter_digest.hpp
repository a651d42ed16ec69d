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

  /// Add a run of an HF tensor as the checkpoint stores it, from `first_element` of that tensor on.
  void add_stored(std::uint32_t tensor, std::uint64_t first_element, std::span<std::byte const> bytes,
                  Digests& digests);

  /// Add a run of the native tensor, row-major, from `first_element` of the global tensor on. @throws PlanError for a
  /// run that leaves the tensor, here and above.
  void add_native(std::uint64_t first_element, std::span<std::byte const> bytes, Digests& digests);

 private:
  void add_split(std::uint64_t first_element, std::span<std::byte const> bytes, Digests& digests);
  void add_converted(Form form, std::uint64_t first_element, std::span<std::byte const> bytes, Digests& digests);
  void add_run(std::uint32_t tensor, std::uint64_t first_element, std::span<std::byte const> bytes, Digests& digests);

  Model const& model_;
  Parameter const& parameter_;
  TensorDigest source_;                 // of each of the tensors: they all have one shape
  std::optional<TensorDigest> stored_;  // of the converted values
  std::vector<std::byte> converted_;
};

}  // namespace rankslice

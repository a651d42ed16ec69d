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

/// Digests one parameter from bytes in either form, under both its dtypes when it is converted.
class ParameterDigest {
 public:
  explicit ParameterDigest(Parameter const& parameter);

  /// Add a run of elements to the numbers of tensor `index`. `first_element` is row-major in `form` (bytes for
  /// sub-byte types); the run holds whole elements.
  void add(Form form, std::uint64_t first_element, std::span<std::byte const> bytes, Digests& digests,
           std::size_t index);

 private:
  Parameter const& parameter_;
  TensorDigest source_;
  std::optional<TensorDigest> stored_;  // of the converted values
  std::vector<std::byte> converted_;
};

}  // namespace rankslice

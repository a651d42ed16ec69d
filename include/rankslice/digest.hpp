#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "rankslice/parameter.hpp"

namespace rankslice {

/// The digest/1 numbers of a list of tensors of a Hugging Face checkpoint. Each tensor has one number per entry of its
/// first axis when its rank is at least 3 (an expert's digest; none without elements), else a single one. Partial
/// tables of parts of the tensors add up to the whole, so one all-reduce of `values()` gives the global digests. Sums
/// are modulo 2^64.
class DigestTable {
 public:
  DigestTable() = default;
  /// All zero: the digest of nothing.
  explicit DigestTable(std::vector<HfTensor> const& tensors);

  [[nodiscard]] std::size_t tensors() const { return first_.empty() ? 0 : first_.size() - 1; }
  [[nodiscard]] std::span<std::uint64_t> of(std::size_t tensor);
  [[nodiscard]] std::span<std::uint64_t const> of(std::size_t tensor) const;
  /// The digest of a whole tensor: the sum over its entries.
  [[nodiscard]] std::uint64_t sum(std::size_t tensor) const;
  [[nodiscard]] std::span<std::uint64_t> values() { return values_; }
  [[nodiscard]] std::span<std::uint64_t const> values() const { return values_; }

 private:
  std::vector<std::size_t> first_;  // where each tensor's numbers begin; one more at the end
  std::vector<std::uint64_t> values_;
};

/// The digests of a checkpoint as its files store it, and, where loading converts, of the converted values, which have
/// the coordinates of what they were computed from.
struct Digests {
  Digests() = default;
  /// All zero.
  explicit Digests(Model const& model) : source(model.tensors), stored(model.tensors) {}

  DigestTable source;
  DigestTable stored;  ///< Entries of tensors that are not converted are unused.
  /// `source` lacks the tensors whose values do not give the checkpoint's back (`Parameter::invertible`), and their
  /// scales: only their native form was seen.
  bool without_codes = false;
  /// `stored` is not known: only what the files hold was digested (a manifest).
  bool without_values = false;
};

}  // namespace rankslice

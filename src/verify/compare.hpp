#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "rankslice/checkpoint.hpp"
#include "rankslice/digest.hpp"
#include "rankslice/verify.hpp"

namespace rankslice {

/// Digests of a list of tensors and what they are called in messages: "read", "held", "recorded", …
struct NamedTable {
  std::string_view name;
  DigestTable const& table;
};
struct NamedDigests {
  std::string_view name;
  Digests const& digests;
};

/// Where two tables differ: one entry per tensor and expert. A swapped expert is recognised, as q(e) does not depend
/// on e, among those of `known`, or else of `expected`. `rank` is who found it, or -1 for sums over all ranks.
[[nodiscard]] std::vector<Mismatch> differences(Model const& model, NamedTable const& expected, NamedTable const& found,
                                                int rank, DigestTable const* known = nullptr);

/// The same for the source and the converted values of each tensor, as far as both of them know these
/// (`Digests::without_codes`, `without_values`).
[[nodiscard]] std::vector<Mismatch> differences(Model const& model, NamedDigests const& expected,
                                                NamedDigests const& found, int rank, Digests const* known = nullptr);

/// Add to digests of the native form the source digests that they lack: those of `known`, if that has the same values.
void add_codes_of(Model const& model, Digests const& known, Digests& digests);

/// @throws VerifyError naming what differs.
void require_equal(Model const& model, NamedTable const& expected, NamedTable const& found);
void require_equal(Model const& model, NamedDigests const& expected, NamedDigests const& found);

/// The digests of another checkpoint for the tensors of a model.
struct MatchedDigests {
  Digests digests;
  std::vector<Mismatch> mismatches;  ///< Tensors that cannot be compared.
  bool without_codes = false;        ///< Of some tensors only the values are compared: one of the two lacks the codes.
};

/// The digests of `reference` for the tensors of `target`, in their order, by HF key. What only one of the two knows,
/// and values in another native dtype, keep the digests of `own`, which has values. Tensors that only one of the two
/// has, or has with another dtype or shape, or of which nothing is left to compare, are among the mismatches.
[[nodiscard]] MatchedDigests in_order_of(Checkpoint const& target, Checkpoint const& reference,
                                         Digests const& of_reference, Digests const& own);

}  // namespace rankslice

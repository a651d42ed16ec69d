#include "verify/compare.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>

#include "transform/tensor_digest.hpp"

namespace rankslice {

namespace {

/// "layer 3, expert 17 of KEY", as far as it applies. `expert` is negative for what is no expert's.
std::string describe(HfTensor const& tensor, std::int64_t expert) {
  auto const& key = tensor.key;
  if (expert < 0) return key;
  constexpr std::string_view marker = "layers.";
  auto const layer = key.find(marker);
  if (layer == std::string::npos) return fmt::format("expert {} of {}", expert, key);
  auto const digits = layer + marker.size();
  return fmt::format("layer {}, expert {} of {}", key.substr(digits, key.find('.', digits) - digits), expert, key);
}

/// An entry of the digests of a list of tensors.
struct Entry {
  std::uint32_t tensor = 0;
  std::size_t number = 0;
  bool operator==(Entry const&) const = default;
};

/// Whose values an expert's digest belongs to, going by its q: another expert's, or else those of another matrix (gate
/// for up); nothing when nobody's. A digest of 0 is that of an expert that is not there, which may hold for several.
std::optional<Entry> owner_of(std::uint64_t d, Entry const& at, Model const& model, DigestTable const& expected) {
  if (d == 0) return std::nullopt;
  auto const q = d * inverse_modulo_2_64(expert_factor(at.number));
  auto const& tensor = model.tensors[at.tensor];
  std::optional<Entry> other_matrix;
  for (auto const i : model.parameters[tensor.parameter].tensors) {
    auto const same_matrix = model.tensors[i].columns == tensor.columns;
    auto const entries = expected.of(i);
    for (std::size_t e = 0; e < entries.size(); ++e) {
      if (Entry{i, e} == at || entries[e] != q * expert_factor(e)) continue;
      if (same_matrix) return Entry{i, e};
      if (!other_matrix) other_matrix = Entry{i, e};
    }
  }
  return other_matrix;
}

/// "expert 17", or the key of another matrix.
std::string name_owner(Model const& model, HfTensor const& tensor, Entry const& owner) {
  auto const& other = model.tensors[owner.tensor];
  if (other.columns != tensor.columns) return other.key;
  return fmt::format("expert {}", other.experts.begin + owner.number);
}

Mismatch tensor_mismatch(HfTensor const& tensor, std::string const& what) {
  return {.tensor = tensor.key, .expert = -1, .rank = -1, .what = tensor.key + ": " + what};
}

/// What is known of a tensor.
struct KnownTensor {
  Checkpoint const& checkpoint;
  Digests const& digests;
  std::size_t index = 0;

  [[nodiscard]] HfTensor const& tensor() const { return checkpoint.model.tensors[index]; }
  [[nodiscard]] Parameter const& parameter() const { return checkpoint.model.parameters[tensor().parameter]; }
  [[nodiscard]] bool has_source() const { return parameter().invertible() || !digests.without_codes; }
};

/// Take over the digests that both know of a tensor.
void match(KnownTensor const& mine, KnownTensor const& theirs, MatchedDigests& matched) {
  auto const both_have_source = mine.has_source() && theirs.has_source();
  auto const dtype = theirs.parameter().dtype;
  auto const same_values = mine.parameter().dtype == dtype && !theirs.digests.without_values;
  if (both_have_source) {
    std::ranges::copy(theirs.digests.source.of(theirs.index), matched.digests.source.of(mine.index).begin());
  } else if (same_values) {
    matched.without_codes = true;
  } else if (!mine.tensor().is_scales) {  // of which their weight tells
    matched.mismatches.push_back(
        tensor_mismatch(mine.tensor(), fmt::format("held as {} here, as {} in {}: not comparable",
                                                   name(mine.parameter().dtype), name(dtype), theirs.checkpoint.path)));
  }
  if (!same_values) return;
  std::ranges::copy(theirs.digests.stored.of(theirs.index), matched.digests.stored.of(mine.index).begin());
}

/// The entries of one tensor that differ.
void append_differences(Model const& model, std::size_t index, NamedTable const& expected, NamedTable const& found,
                        int rank, DigestTable const& known, std::vector<Mismatch>& mismatches) {
  auto const& tensor = model.tensors[index];
  auto const stacked = model.parameters[tensor.parameter].stacked_experts;
  auto const want = expected.table.of(index);
  auto const have = found.table.of(index);
  for (std::size_t e = 0; e < want.size(); ++e) {
    if (want[e] == have[e]) continue;
    auto const expert = stacked ? static_cast<std::int64_t>(tensor.experts.begin + e) : -1;
    auto what = fmt::format("{}: {} digest {:016x}, {} {:016x}", describe(tensor, expert), expected.name, want[e],
                            found.name, have[e]);
    if (stacked) {
      auto const owner = owner_of(have[e], {static_cast<std::uint32_t>(index), e}, model, known);
      if (owner) what += fmt::format(" (holds the values of {})", name_owner(model, tensor, *owner));
    }
    if (rank >= 0) what = fmt::format("rank {}: {}", rank, what);
    mismatches.push_back({.tensor = tensor.key, .expert = expert, .rank = rank, .what = std::move(what)});
    if (!stacked) break;  // entries of a dense tensor mean nothing to a reader
  }
}

}  // namespace

std::vector<Mismatch> differences(Model const& model, NamedTable const& expected, NamedTable const& found, int rank,
                                  DigestTable const* known) {
  auto const& values = known != nullptr ? *known : expected.table;
  std::vector<Mismatch> mismatches;
  for (std::size_t i = 0; i < model.tensors.size(); ++i)
    append_differences(model, i, expected, found, rank, values, mismatches);
  return mismatches;
}

std::vector<Mismatch> differences(Model const& model, NamedDigests const& expected, NamedDigests const& found, int rank,
                                  Digests const* known) {
  auto const only_invertible = expected.digests.without_codes || found.digests.without_codes;
  auto const& values = known != nullptr ? *known : expected.digests;
  std::vector<Mismatch> mismatches;
  for (std::size_t i = 0; i < model.tensors.size(); ++i) {
    if (only_invertible && !model.parameters[model.tensors[i].parameter].invertible()) continue;
    append_differences(model, i, {expected.name, expected.digests.source}, {found.name, found.digests.source}, rank,
                       values.source, mismatches);
  }
  if (expected.digests.without_values || found.digests.without_values) return mismatches;
  auto const converted = differences(model, NamedTable{expected.name, expected.digests.stored},
                                     NamedTable{found.name, found.digests.stored}, rank, &values.stored);
  mismatches.insert(mismatches.end(), converted.begin(), converted.end());
  return mismatches;
}

void add_codes_of(Model const& model, Digests const& known, Digests& digests) {
  if (known.without_codes || known.without_values || !digests.without_codes) return;
  auto const lacks_codes = [&](std::size_t i) { return !model.parameters[model.tensors[i].parameter].invertible(); };
  for (std::size_t i = 0; i < model.tensors.size(); ++i) {
    if (lacks_codes(i) && !std::ranges::equal(known.stored.of(i), digests.stored.of(i))) return;
  }
  for (std::size_t i = 0; i < model.tensors.size(); ++i) {
    if (lacks_codes(i)) std::ranges::copy(known.source.of(i), digests.source.of(i).begin());
  }
  digests.without_codes = false;
}

void require_equal(Model const& model, NamedTable const& expected, NamedTable const& found) {
  VerifyReport report;
  report.mismatches = differences(model, expected, found, -1);
  report.throw_if_bad();
}

void require_equal(Model const& model, NamedDigests const& expected, NamedDigests const& found) {
  VerifyReport report;
  report.mismatches = differences(model, expected, found, -1);
  report.throw_if_bad();
}

MatchedDigests in_order_of(Checkpoint const& target, Checkpoint const& reference, Digests const& of_reference,
                           Digests const& own) {
  std::map<std::string_view, std::size_t> by_key;
  auto const& known = reference.model.tensors;
  for (std::size_t i = 0; i < known.size(); ++i) by_key.emplace(known[i].key, i);
  MatchedDigests matched{.digests = own, .mismatches = {}};
  for (std::size_t i = 0; i < target.model.tensors.size(); ++i) {
    auto const& mine = target.model.tensors[i];
    auto const found = by_key.find(mine.key);
    if (found == by_key.end()) {
      matched.mismatches.push_back(tensor_mismatch(mine, "not in " + reference.path));
      continue;
    }
    auto const& theirs = known[found->second];
    if (mine.dtype != theirs.dtype || mine.shape != theirs.shape) {
      matched.mismatches.push_back(
          tensor_mismatch(mine, fmt::format("{} {}, but {} {} in {}", name(mine.dtype), to_string(mine.shape),
                                            name(theirs.dtype), to_string(theirs.shape), reference.path)));
    } else {
      match({target, own, i}, {reference, of_reference, found->second}, matched);
    }
    by_key.erase(found);
  }
  for (auto const& [key, index] : by_key)
    matched.mismatches.push_back(tensor_mismatch(known[index], "only in " + reference.path));
  return matched;
}

}  // namespace rankslice

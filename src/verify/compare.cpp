#include "verify/compare.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "transform/tensor_digest.hpp"

namespace rankslice {

namespace {

/// "layer 3, expert 17 of KEY", as far as it applies.
std::string describe(Parameter const& parameter, std::size_t entry) {
  if (!parameter.stacked_experts) return parameter.hf_key;
  auto const& key = parameter.hf_key;
  constexpr std::string_view marker = "layers.";
  auto const layer = key.find(marker);
  if (layer == std::string::npos) return fmt::format("expert {} of {}", entry, key);
  auto const digits = layer + marker.size();
  return fmt::format("layer {}, expert {} of {}", key.substr(digits, key.find('.', digits) - digits), entry, key);
}

/// Which expert's values a digest belongs to, going by its q; nothing when no expert's. A digest of 0 is that of an
/// expert that is not there, which may hold for several.
std::optional<std::size_t> owner_of(std::uint64_t d, std::size_t entry, std::span<std::uint64_t const> expected) {
  if (d == 0) return std::nullopt;
  auto const q = d * inverse_modulo_2_64(expert_factor(entry));
  for (std::size_t e = 0; e < expected.size(); ++e) {
    if (e != entry && expected[e] == q * expert_factor(e)) return e;
  }
  return std::nullopt;
}

Mismatch tensor_mismatch(Parameter const& parameter, std::string const& what) {
  return {.tensor = parameter.hf_key, .expert = -1, .rank = -1, .what = parameter.hf_key + ": " + what};
}

}  // namespace

std::vector<Mismatch> differences(std::vector<Parameter> const& parameters, NamedTable const& expected,
                                  NamedTable const& found, int rank) {
  std::vector<Mismatch> mismatches;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    auto const& parameter = parameters[i];
    auto const want = expected.table.of(i);
    auto const have = found.table.of(i);
    for (std::size_t e = 0; e < want.size(); ++e) {
      if (want[e] == have[e]) continue;
      auto what = fmt::format("{}: {} digest {:016x}, {} {:016x}", describe(parameter, e), expected.name, want[e],
                              found.name, have[e]);
      if (auto const owner = owner_of(have[e], e, want); parameter.stacked_experts && owner) {
        what += fmt::format(" (holds the values of expert {})", *owner);
      }
      if (rank >= 0) what = fmt::format("rank {}: {}", rank, what);
      mismatches.push_back({.tensor = parameter.hf_key,
                            .expert = parameter.stacked_experts ? static_cast<std::int64_t>(e) : -1,
                            .rank = rank,
                            .what = std::move(what)});
      if (!parameter.stacked_experts) break;  // entries of a dense tensor mean nothing to a reader
    }
  }
  return mismatches;
}

std::vector<Mismatch> differences(std::vector<Parameter> const& parameters, NamedDigests const& expected,
                                  NamedDigests const& found, int rank) {
  auto mismatches = differences(parameters, NamedTable{expected.name, expected.digests.source},
                                NamedTable{found.name, found.digests.source}, rank);
  auto const converted = differences(parameters, NamedTable{expected.name, expected.digests.stored},
                                     NamedTable{found.name, found.digests.stored}, rank);
  mismatches.insert(mismatches.end(), converted.begin(), converted.end());
  return mismatches;
}

void require_equal(std::vector<Parameter> const& parameters, NamedTable const& expected, NamedTable const& found) {
  VerifyReport report;
  report.mismatches = differences(parameters, expected, found, -1);
  report.throw_if_bad();
}

Digests in_order_of(Checkpoint const& target, Checkpoint const& reference, Digests const& of_reference,
                    Digests const& fallback, std::vector<Mismatch>& mismatches) {
  std::map<std::string_view, std::size_t> by_key;
  for (std::size_t i = 0; i < reference.parameters.size(); ++i) by_key.emplace(reference.parameters[i].hf_key, i);
  auto ordered = fallback;
  for (std::size_t i = 0; i < target.parameters.size(); ++i) {
    auto const& mine = target.parameters[i];
    auto const found = by_key.find(mine.hf_key);
    if (found == by_key.end()) {
      mismatches.push_back(tensor_mismatch(mine, "not in " + reference.path));
      continue;
    }
    auto const& theirs = reference.parameters[found->second];
    if (mine.hf_dtype != theirs.hf_dtype || mine.hf_shape != theirs.hf_shape) {
      mismatches.push_back(
          tensor_mismatch(mine, fmt::format("{} {}, but {} {} in {}", name(mine.hf_dtype), to_string(mine.hf_shape),
                                            name(theirs.hf_dtype), to_string(theirs.hf_shape), reference.path)));
    } else {
      std::ranges::copy(of_reference.source.of(found->second), ordered.source.of(i).begin());
      std::ranges::copy(of_reference.stored.of(found->second), ordered.stored.of(i).begin());
    }
    by_key.erase(found);
  }
  for (auto const& [key, index] : by_key) {
    mismatches.push_back(tensor_mismatch(reference.parameters[index], "only in " + reference.path));
  }
  return ordered;
}

}  // namespace rankslice

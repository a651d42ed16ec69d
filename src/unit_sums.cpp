#include "unit_sums.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <optional>

#include "rankslice/error.hpp"

namespace rankslice {

namespace {

/// Which of a tensor's digests are of a unit: of grouped experts one each, of all else all or none.
Range entries_of(HfTensor const& tensor, Parameter const& parameter, Slice const& unit, std::size_t entries) {
  if (!parameter.stacked_experts) return {0, entries};
  auto const experts = intersection(tensor.experts, unit.part);
  if (experts.empty()) return {0, 0};
  if (tensor.experts.size() != entries) {
    throw PlanError(
        fmt::format("{}: {} experts have {} digests, expected one of each", tensor.key, tensor.experts.size(), entries),
        tensor.key);
  }
  return {experts.begin - tensor.experts.begin, experts.end - tensor.experts.begin};
}

/// Call step(numbers) for those of some units, in `source` and `stored` tables.
template <typename AnyDigests, typename Step>
void for_each_part(Model const& model, AnyDigests& digests, std::vector<PlannedSlice> const& units, Step const& step) {
  for (auto const& [index, unit] : units) {
    auto const& parameter = model.parameters[index];
    for (auto const number : parameter.tensors) {
      auto const& tensor = model.tensors[number];
      auto const add = [&](std::uint32_t of) {
        auto const source = digests.source.of(of);
        auto const [begin, end] = entries_of(tensor, parameter, unit, source.size());
        step(source.subspan(begin, end - begin));
        if (parameter.converted()) step(digests.stored.of(of).subspan(begin, end - begin));
      };
      add(number);
      if (tensor.scales) add(*tensor.scales);
    }
  }
}

template <typename Combine>
void combine(DigestTable const& from, DigestTable& to, Combine const& with) {
  std::ranges::transform(to.values(), from.values(), to.values().begin(), with);
}

}  // namespace

std::vector<std::uint64_t> sums_of_units(Model const& model, Digests const& digests,
                                         std::vector<PlannedSlice> const& units) {
  std::vector<std::uint64_t> sums;
  for_each_part(model, digests, units,
                [&](std::span<std::uint64_t const> part) { sums.insert(sums.end(), part.begin(), part.end()); });
  return sums;
}

std::size_t count_sums(Model const& model, std::vector<PlannedSlice> const& units) {
  return sums_of_units(model, Digests(model), units).size();
}

void add_sums(Model const& model, std::span<std::uint64_t const> sums, std::vector<PlannedSlice> const& units,
              Digests& digests) {
  for_each_part(model, digests, units, [&](std::span<std::uint64_t> part) {
    std::ranges::transform(part, sums.first(part.size()), part.begin(), std::plus());
    sums = sums.subspan(part.size());
  });
}

Digests of_units(Model const& model, Digests const& digests, std::vector<PlannedSlice> const& units) {
  Digests some(model);
  some.without_codes = digests.without_codes;
  some.without_values = digests.without_values;
  add_sums(model, sums_of_units(model, digests, units), units, some);
  return some;
}

void add_digests(Digests const& more, Digests& digests) {
  combine(more.source, digests.source, std::plus());
  combine(more.stored, digests.stored, std::plus());
}

Digests without(Digests const& part, Digests all) {
  combine(part.source, all.source, std::minus());
  combine(part.stored, all.stored, std::minus());
  return all;
}

}  // namespace rankslice

#include <fmt/format.h>

#include <algorithm>

#include "rankslice/error.hpp"

#include "plan/plan.hpp"

namespace rankslice {

namespace {

LocatedPart cut(StoredPiece const& piece, Range part, std::uint64_t unit_bytes) {
  auto const begin = piece.extent.bytes.begin + (part.begin - piece.part.begin) * unit_bytes;
  return {.part = part, .extent = {.file = piece.extent.file, .bytes = {begin, begin + part.size() * unit_bytes}}};
}

void append(std::vector<LocatedPart>& located, LocatedPart const& next) {
  if (!located.empty()) {
    auto& last = located.back();
    if (last.extent.file == next.extent.file && last.extent.bytes.end == next.extent.bytes.begin) {
      last.part.end = next.part.end;
      last.extent.bytes.end = next.extent.bytes.end;
      return;
    }
  }
  located.push_back(next);
}

[[noreturn]] void fail_uncovered(Parameter const& parameter, Range missing) {
  throw PlanError(fmt::format("{}: {} [{}, {}) are in none of the files", parameter.hf_key,
                              parameter.stacked_experts ? "experts" : "elements", missing.begin, missing.end),
                  parameter.hf_key);
}

}  // namespace

std::vector<LocatedPart> locate(Storage const& storage, std::vector<Parameter> const& parameters,
                                PlannedPart const& wanted) {
  auto const& parameter = parameters[wanted.parameter];
  auto const pieces = std::ranges::equal_range(storage.pieces, wanted.parameter, {}, &StoredPiece::parameter);
  auto const unit_bytes = parameter.part_bytes(storage.form);
  std::vector<LocatedPart> located;
  auto covered = wanted.part.begin;
  for (auto const& piece : pieces) {
    if (covered == wanted.part.end || piece.part.begin > covered) break;
    if (piece.part.end <= covered) continue;
    auto const end = std::min(piece.part.end, wanted.part.end);
    append(located, cut(piece, {covered, end}, unit_bytes));
    covered = end;
  }
  if (covered != wanted.part.end) fail_uncovered(parameter, {covered, wanted.part.end});
  return located;
}

}  // namespace rankslice

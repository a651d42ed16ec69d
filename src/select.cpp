#include <fmt/format.h>

#include <algorithm>

#include "rankslice/checkpoint.hpp"
#include "rankslice/error.hpp"

namespace rankslice {

namespace {

/// Where the kept tensors and parameters of a model go; nothing for the others.
struct Renumbering {
  std::vector<std::optional<std::uint32_t>> tensors, parameters;
};

void require_whole(Model const& model, Parameter const& parameter, Renumbering const& kept) {
  auto const is_kept = [&](std::uint32_t tensor) { return kept.tensors[tensor].has_value(); };
  auto const left_out = std::ranges::find_if_not(parameter.tensors, is_kept);
  if (left_out == parameter.tensors.end()) return;
  throw PlanError(fmt::format("{} is made of {} tensors, of which the selection leaves out {}", parameter.fqn,
                              parameter.tensors.size(), model.tensors[*left_out].key),
                  parameter.fqn);
}

Renumbering select_in(Model const& model, KeySelection const& keys) {
  Renumbering kept{.tensors = decltype(Renumbering::tensors)(model.tensors.size()),
                   .parameters = decltype(Renumbering::parameters)(model.parameters.size())};
  std::uint32_t tensors = 0, parameters = 0;
  for (std::size_t i = 0; i < model.tensors.size(); ++i) {
    if (!keys(model.tensors[i].key)) continue;
    kept.tensors[i] = tensors++;
    auto& parameter = kept.parameters[model.tensors[i].parameter];
    if (!parameter) parameter = parameters++;
  }
  for (std::size_t i = 0; i < model.parameters.size(); ++i) {
    if (kept.parameters[i]) require_whole(model, model.parameters[i], kept);
  }
  return kept;
}

Model renumbered(Model const& model, Renumbering const& kept) {
  Model result;
  for (std::size_t i = 0; i < model.tensors.size(); ++i) {
    if (!kept.tensors[i]) continue;
    result.tensors.push_back(model.tensors[i]);
    result.tensors.back().parameter = *kept.parameters[model.tensors[i].parameter];
  }
  result.parameters.resize(static_cast<std::size_t>(
      std::ranges::count_if(kept.parameters, [](auto const& place) { return place.has_value(); })));
  for (std::size_t i = 0; i < model.parameters.size(); ++i) {
    if (!kept.parameters[i]) continue;
    auto& parameter = result.parameters[*kept.parameters[i]] = model.parameters[i];
    for (auto& tensor : parameter.tensors) tensor = *kept.tensors[tensor];
  }
  return result;
}

void copy_numbers(DigestTable const& from, std::vector<std::optional<std::uint32_t>> const& kept, DigestTable& to) {
  for (std::size_t i = 0; i < kept.size(); ++i) {
    if (kept[i]) std::ranges::copy(from.of(i), to.of(*kept[i]).begin());
  }
}

}  // namespace

std::shared_ptr<Checkpoint const> select_tensors(std::shared_ptr<Checkpoint const> const& checkpoint,
                                                 KeySelection const& keys) {
  auto const kept = select_in(checkpoint->model, keys);
  auto selected = std::make_shared<Checkpoint>(*checkpoint);
  selected->model = renumbered(checkpoint->model, kept);
  selected->catalog.tensors.clear();
  for (std::size_t i = 0; i < kept.tensors.size(); ++i) {
    if (kept.tensors[i]) selected->catalog.tensors.push_back(checkpoint->catalog.tensors[i]);
  }
  selected->storage.pieces.clear();
  for (auto piece : checkpoint->storage.pieces) {
    auto const parameter = kept.parameters[piece.parameter];
    if (!parameter) continue;
    piece.parameter = *parameter;
    if (checkpoint->storage.form == Form::hf) piece.tensor = *kept.tensors[piece.tensor];
    selected->storage.pieces.push_back(piece);
  }
  std::ranges::stable_sort(selected->storage.pieces, {}, &StoredPiece::parameter);
  if (checkpoint->digests) {
    auto& digests = selected->digests.emplace(selected->model);
    copy_numbers(checkpoint->digests->source, kept.tensors, digests.source);
    copy_numbers(checkpoint->digests->stored, kept.tensors, digests.stored);
  }
  return selected;
}

}  // namespace rankslice

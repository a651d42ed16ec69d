#include "select.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>
#include <unordered_map>

#include "rankslice/checkpoint.hpp"
#include "rankslice/error.hpp"

#include "checkpoint_parts.hpp"
#include "hf_target.hpp"

namespace rankslice {

namespace {

/// Where the kept tensors and parameters of a model go; nothing for the others.
struct Renumbering {
  std::vector<std::optional<std::uint32_t>> tensors, parameters;
  std::uint32_t parameter_count = 0;
};

void require_whole(Model const& model, std::vector<bool> const& taken) {
  for (auto const& parameter : model.parameters) {
    auto const is_taken = [&](std::uint32_t tensor) { return taken[tensor]; };
    auto const count = std::ranges::count_if(parameter.tensors, is_taken);
    if (count == 0 || count == std::ssize(parameter.tensors)) continue;
    auto const left_out = *std::ranges::find_if_not(parameter.tensors, is_taken);
    throw PlanError(
        fmt::format("{} is made of {} tensors, of which the selection leaves out {}: {}", parameter.fqn,
                    parameter.tensors.size(), std::ssize(parameter.tensors) - count, model.tensors[left_out].key),
        parameter.fqn);
  }
}

/// Tensors as the fresh catalog has them, parameters by their first tensor there.
Renumbering number_as(TensorCatalog const& fresh, Model const& model) {
  std::unordered_map<std::string_view, std::size_t> old_place;
  for (std::size_t i = 0; i < model.tensors.size(); ++i) old_place.emplace(model.tensors[i].key, i);
  Renumbering kept{.tensors = decltype(Renumbering::tensors)(model.tensors.size()),
                   .parameters = decltype(Renumbering::parameters)(model.parameters.size())};
  for (std::uint32_t i = 0; i < fresh.tensors.size(); ++i) {
    auto const old = old_place.at(fresh.tensors[i].name);
    kept.tensors[old] = i;
    auto& parameter = kept.parameters[model.tensors[old].parameter];
    if (!parameter) parameter = kept.parameter_count++;
  }
  return kept;
}

Model renumbered(Model const& model, Renumbering const& kept, std::size_t tensor_count) {
  Model result{.tensors = std::vector<HfTensor>(tensor_count),
               .parameters = std::vector<Parameter>(kept.parameter_count)};
  for (std::size_t i = 0; i < model.tensors.size(); ++i) {
    if (!kept.tensors[i]) continue;
    auto& tensor = result.tensors[*kept.tensors[i]] = model.tensors[i];
    tensor.parameter = *kept.parameters[tensor.parameter];
    if (tensor.scales) tensor.scales = kept.tensors[*tensor.scales];
  }
  for (std::size_t i = 0; i < model.parameters.size(); ++i) {
    if (!kept.parameters[i]) continue;
    auto& parameter = result.parameters[*kept.parameters[i]] = model.parameters[i];
    for (auto& tensor : parameter.tensors) tensor = *kept.tensors[tensor];
  }
  return result;
}

/// The bytes stay where they are, under other numbers.
std::vector<StoredPiece> renumbered(Storage const& storage, Renumbering const& kept) {
  std::vector<StoredPiece> pieces;
  for (auto piece : storage.pieces) {
    if (!kept.parameters[piece.parameter]) continue;
    piece.parameter = *kept.parameters[piece.parameter];
    if (storage.form == Form::hf) piece.tensor = *kept.tensors[piece.tensor];
    pieces.push_back(piece);
  }
  std::ranges::stable_sort(pieces, {}, &StoredPiece::parameter);
  return pieces;
}

void copy_numbers(DigestTable const& from, std::vector<std::optional<std::uint32_t>> const& kept, DigestTable& to) {
  for (std::size_t i = 0; i < kept.size(); ++i) {
    if (kept[i]) std::ranges::copy(from.of(i), to.of(*kept[i]).begin());
  }
}

Digests renumbered(Digests const& digests, Renumbering const& kept, Model const& model) {
  auto const& [source, stored, without_codes, without_values] = digests;  // all there is
  Digests result(model);
  copy_numbers(source, kept.tensors, result.source);
  copy_numbers(stored, kept.tensors, result.stored);
  result.without_codes = without_codes;
  result.without_values = without_values;
  return result;
}

}  // namespace

Checkpoint keep_tensors(Checkpoint const& checkpoint, std::vector<bool> const& taken) {
  auto const& model = checkpoint.model;
  require_whole(model, taken);
  auto target = make_target(checkpoint, taken);
  auto const kept = number_as(target.catalog, model);

  auto selected = checkpoint;
  selected.model = renumbered(model, kept, target.catalog.tensors.size());
  selected.storage.pieces = renumbered(checkpoint.storage, kept);
  if (checkpoint.digests) selected.digests = renumbered(*checkpoint.digests, kept, selected.model);
  selected.fingerprint = fingerprint(target.hf);
  selected.catalog = std::move(target.catalog);
  selected.hf = std::move(target.hf);
  return selected;
}

std::shared_ptr<Checkpoint const> select_tensors(std::shared_ptr<Checkpoint const> const& checkpoint,
                                                 KeySelection const& keys) {
  auto const taken = taken_tensors(checkpoint->model, keys);
  if (std::ranges::find(taken, false) == taken.end()) return checkpoint;
  return std::make_shared<Checkpoint const>(keep_tensors(*checkpoint, taken));
}

}  // namespace rankslice

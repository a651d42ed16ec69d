#include "exported_state.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "rankslice/error.hpp"

#include "model/family.hpp"

namespace rankslice {

StateDict as_part_of(ExportTarget const& target, StateDict const& state) {
  auto source = std::make_shared<Checkpoint>();
  source->path = state.source->path;
  source->model = target.model;
  auto exported = state;
  for (auto& [fqn, tensor] : exported.tensors) tensor.parameter = source->model.parameters[tensor.index];
  exported.source = std::move(source);
  return exported;
}

Digests without_left_out(std::vector<bool> const& taken, Digests digests) {
  for (std::size_t i = 0; i < taken.size(); ++i) {
    if (taken[i]) continue;
    std::ranges::fill(digests.source.of(i), 0);
    std::ranges::fill(digests.stored.of(i), 0);
  }
  return digests;
}

void refuse_changed(std::string const& what, std::string const& why, std::string const& file, std::string const& key) {
  throw VerifyError(fmt::format("{}: was changed since it was loaded{}; export with --export-layout auto", what, why),
                    file, key);
}

void require_fitting(Checkpoint const& source, std::vector<bool> const& taken, Digests const& held,
                     Digests const& exported) {
  auto const& model = source.model;
  auto const& keys = find_family(source.family, {}).keys;
  for (std::size_t i = 0; i < taken.size(); ++i) {
    auto const& key = model.tensors[i].key;
    auto const& parameter = model.parameters[model.tensors[i].parameter];
    auto const widened = parameter.converted() && parameter.invertible() && !is_fp32_held(keys, key);
    if (!taken[i] || !widened || std::ranges::equal(held.stored.of(i), exported.stored.of(i))) continue;
    auto const why =
        fmt::format(": its values in {} do not fit into {}", name(parameter.dtype), name(parameter.hf_dtype));
    refuse_changed(key, why, {}, key);
  }
}

}  // namespace rankslice

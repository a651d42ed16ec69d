#include "model/hf_tensors.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "rankslice/error.hpp"

namespace rankslice {

void require_stackable(NativeTensor const& native, std::uint64_t matrices) {
  auto const is_filled = std::ranges::find(native.shape, 0U) == native.shape.end();
  if (native.shape.size() == 3 && is_filled && bits(native.dtype) % 8 == 0 && native.shape[2] % matrices == 0) return;
  throw FormatError(
      fmt::format("{}: stacked experts need 3 axes, none of them 0{}, and a dtype of whole bytes, found {} {}",
                  native.fqn, matrices == 1 ? "" : ", the last even", name(native.dtype), to_string(native.shape)),
      {}, native.fqn);
}

HfTensor grouped_tensor(std::string key, Shape shape, Layout layout) {
  Range const experts{0, shape[0]}, columns{0, shape[2]};
  if (layout == Layout::swapped) std::swap(shape[1], shape[2]);
  return {.key = std::move(key), .shape = std::move(shape), .experts = experts, .columns = columns};
}

std::vector<HfTensor> split_tensors(StackedRule const& rule, std::string_view fqn, Shape const& shape,
                                    Range const& experts) {
  auto const width = shape[2] / rule.split.size();
  std::vector<HfTensor> tensors;
  for (auto expert = experts.begin; expert < experts.end; ++expert) {
    for (std::uint64_t matrix = 0; matrix < rule.split.size(); ++matrix) {
      tensors.push_back({.key = split_key(rule, fqn, {expert, matrix}),
                         .shape = {width, shape[1]},
                         .experts = {expert, expert + 1},
                         .columns = {matrix * width, (matrix + 1) * width}});
    }
  }
  return tensors;
}

void DistinctKeys::add(std::string const& key, std::string const& fqn) {
  auto const [earlier, is_new] = fqn_of_.emplace(key, fqn);
  if (is_new) return;
  throw FormatError(fmt::format("{}: becomes {}, as {} does", fqn, key, earlier->second), {}, fqn);
}

}  // namespace rankslice

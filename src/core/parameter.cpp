#include "rankslice/parameter.hpp"

#include <fmt/format.h>

#include <array>

#include "core/literals.hpp"

namespace rankslice {

namespace {

// Below this a seek costs more than the bytes between.
constexpr auto kLeastPiece = 64_KiB;

constexpr std::array<std::string_view, 3> kExpertLayouts{"auto", "hub", "transformers"};  // by their numbers

}  // namespace

std::string_view name(ExpertLayout layout) { return kExpertLayouts.at(static_cast<std::size_t>(layout)); }

std::optional<ExpertLayout> parse_expert_layout(std::string_view name) {
  for (auto const layout : {ExpertLayout::automatic, ExpertLayout::hub, ExpertLayout::transformers}) {
    if (rankslice::name(layout) == name) return layout;
  }
  return std::nullopt;
}

std::string_view name(ExpertForm form) { return form == ExpertForm::split ? "split" : "grouped"; }

std::optional<ExpertForm> parse_expert_form(std::string_view name) {
  for (auto const form : {ExpertForm::grouped, ExpertForm::split}) {
    if (rankslice::name(form) == name) return form;
  }
  return std::nullopt;
}

Slice intersection(Slice const& a, Slice const& b) {
  return {.part = intersection(a.part, b.part), .rows = intersection(a.rows, b.rows)};
}

std::string to_string(Slice const& slice) {
  return fmt::format("[{}, {}) × [{}, {})", slice.part.begin, slice.part.end, slice.rows.begin, slice.rows.end);
}

bool Parameter::invertible() const {
  return !converted() || (dtype == DType::F32 && (hf_dtype == DType::BF16 || hf_dtype == DType::F16));
}

std::uint64_t Parameter::part_count() const {
  if (stacked_experts) return shape[0];
  return sub_byte(hf_dtype) ? byte_size(hf_dtype, shape) : element_count(shape);
}

std::uint64_t Parameter::row_count() const { return stacked_experts ? shape[1] : 1; }

std::uint64_t Parameter::columns() const { return stacked_experts ? shape[2] : 1; }

std::uint64_t Parameter::unit_bytes(Form form) const {
  auto const type = dtype_in(form);
  return sub_byte(type) ? 1 : element_bytes(type);
}

std::uint64_t Parameter::scale_bytes_for(Slice const& slice, Form form) const {
  if (form == Form::native || slice.empty()) return 0;
  return stacked_experts ? scale_bytes / part_count() * slice.part.size() : scale_bytes;
}

Slice Parameter::read_for(Slice const& wanted, Form form) const {
  auto const strided = stacked_experts && form == Form::hf && layout == Layout::swapped;
  if (!strided || wanted.empty() || wanted.rows.size() * unit_bytes(form) >= kLeastPiece) return wanted;
  return {.part = wanted.part, .rows = {0, row_count()}};
}

}  // namespace rankslice

#include "transform/piece_scales.hpp"

#include <algorithm>

namespace rankslice {

namespace {

std::uint64_t blocks_before(std::uint64_t elements) { return (elements + kScaleBlock - 1) / kScaleBlock; }

/// Where the scales of some experts of a piece are, or all scales of a dense one.
Extent extent_of(StoredPiece const& piece, Slice const& wanted, bool stacked) {
  auto extent = *piece.scales;
  if (!stacked) return extent;
  auto const per_expert = extent.bytes.size() / piece.slice.part.size();
  auto const begin = extent.bytes.begin + (wanted.part.begin - piece.slice.part.begin) * per_expert;
  extent.bytes = {begin, begin + wanted.part.size() * per_expert};
  return extent;
}

}  // namespace

std::uint64_t PieceScales::read(Model const& model, StoredPiece const& piece, Slice const& wanted, FileReader& file) {
  auto const& parameter = model.parameters[piece.parameter];
  auto const& tensor = model.tensors[piece.tensor];
  dtype_ = model.tensors[*tensor.scales].dtype;
  stacked_ = parameter.stacked_experts;
  swapped_ = parameter.layout == Layout::swapped;
  wanted_ = wanted;
  first_expert_ = tensor.experts.begin;
  columns_ = tensor.shape.back();
  block_rows_ = blocks_before(tensor.shape[tensor.shape.size() - 2]);
  block_columns_ = blocks_before(columns_);
  auto const extent = extent_of(piece, wanted, stacked_);
  if (extent == extent_) return 0;
  bytes_.resize(extent.bytes.size());
  file.read(bytes_, extent.bytes.begin);
  extent_ = extent;
  return bytes_.size();
}

BlockScales PieceScales::of(std::uint64_t expert) const {
  auto const matrix = stacked_ ? expert - wanted_.part.begin : 0;
  return {.data = bytes_.data() + matrix * block_rows_ * block_columns_ * element_bytes(dtype_),
          .dtype = dtype_,
          .columns = block_columns_};
}

Range PieceScales::digested_columns(std::uint64_t block_row) const {
  auto const row = block_row * kScaleBlock;
  if (!stacked_) {  // elements of the matrix
    auto const column = [&](std::uint64_t element) {
      return element <= row * columns_ ? 0 : std::min(blocks_before(element - row * columns_), block_columns_);
    };
    return {column(wanted_.part.begin), column(wanted_.part.end)};
  }
  if (swapped_) return {blocks_before(wanted_.rows.begin), blocks_before(wanted_.rows.end)};
  auto const wants_row = wanted_.rows.begin <= row && row < wanted_.rows.end;
  return {0, wants_row ? block_columns_ : 0};
}

void PieceScales::for_each_digested(
    std::function<void(std::uint64_t first_element, std::span<std::byte const> bytes)> const& step) const {
  auto const unit = element_bytes(dtype_);
  auto const experts = stacked_ ? wanted_.part : Range{0, 1};
  for (auto expert = experts.begin; expert < experts.end; ++expert) {
    for (std::uint64_t row = 0; row < block_rows_; ++row) {
      auto const columns = digested_columns(row);
      if (columns.empty()) continue;
      auto const here = ((expert - experts.begin) * block_rows_ + row) * block_columns_ + columns.begin;
      auto const in_tensor = ((expert - first_expert_) * block_rows_ + row) * block_columns_ + columns.begin;
      step(in_tensor, std::span(bytes_).subspan(here * unit, columns.size() * unit));
    }
  }
}

}  // namespace rankslice

#include "transform/piece_scales.hpp"

#include "core/block_scales.hpp"

namespace rankslice {

std::uint64_t PieceScales::read(Model const& model, StoredPiece const& piece, Slice const& wanted, FileReader& file) {
  auto const& parameter = model.parameters[piece.parameter];
  auto const& tensor = model.tensors[piece.tensor];
  dtype_ = model.tensors[*tensor.scales].dtype;
  stacked_ = parameter.stacked_experts;
  swapped_ = parameter.layout == Layout::swapped;
  wanted_ = wanted;
  first_expert_ = tensor.experts.begin;
  weight_ = tensor.shape;
  block_rows_ = blocks_of(weight_[weight_.size() - 2]);
  block_columns_ = blocks_of(weight_.back());
  Extent const extent{.file = piece.scales->file, .bytes = scale_range(model, piece, wanted)};
  if (extent == extent_) return 0;
  extent_ = {};  // should reading fail, nothing is here
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

void PieceScales::for_each_owned(std::uint64_t expert, std::function<void(Range scales)> const& step) const {
  if (!stacked_) return step(owned_scales(weight_, wanted_.part));
  auto const matrix = expert - first_expert_;
  auto const rows = weight_[weight_.size() - 2];
  auto const columns = weight_.back();
  if (!swapped_) {
    auto const element = [&](std::uint64_t row) { return (matrix * rows + row) * columns; };
    return step(owned_scales(weight_, {element(wanted_.rows.begin), element(wanted_.rows.end)}));
  }
  for_each_in_blocks(expert, {0, block_rows_}, owned_scales(wanted_.rows), step);
}

/// Of some rows and columns of the blocks of an expert.
void PieceScales::for_each_in_blocks(std::uint64_t expert, Range rows, Range columns,
                                     std::function<void(Range scales)> const& step) const {
  for (auto row = rows.begin; row < rows.end; ++row) {
    auto const first = ((expert - first_expert_) * block_rows_ + row) * block_columns_;
    step({first + columns.begin, first + columns.end});
  }
}

/// Some of those that are here.
void PieceScales::give(Range scales, Step const& step) const {
  if (scales.empty()) return;
  auto const unit = element_bytes(dtype_);
  auto const first_here = stacked_ ? (wanted_.part.begin - first_expert_) * block_rows_ * block_columns_ : 0;
  step(scales.begin, std::span(bytes_).subspan((scales.begin - first_here) * unit, scales.size() * unit));
}

void PieceScales::for_each_digested(Step const& step) const {
  auto const experts = stacked_ ? wanted_.part : Range{0, 1};
  for (auto expert = experts.begin; expert < experts.end; ++expert) {
    for_each_owned(expert, [&](Range scales) { give(scales, step); });
  }
}

void PieceScales::for_each_in_rows(std::uint64_t expert, Range stored_rows, Range columns, Step const& step) const {
  for_each_in_blocks(expert, owned_scales(stored_rows), owned_scales(columns),
                     [&](Range scales) { give(scales, step); });
}

}  // namespace rankslice

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "rankslice/checkpoint.hpp"

#include "io/file.hpp"
#include "transform/dequantise.hpp"

namespace rankslice {

/// The block scales of a piece: of the experts that somebody wants of it, or of all of a dense tensor.
/// Scales are digested by whoever wants the first element of their block (`owned_scales`).
class PieceScales {
 public:
  /// With some of the scales, from `first_element` of their tensor on.
  using Step = std::function<void(std::uint64_t first_element, std::span<std::byte const> bytes)>;

  /// Read them, unless they are here already. Returns the bytes that were read. @throws IoError
  std::uint64_t read(Model const& model, StoredPiece const& piece, Slice const& wanted, FileReader& file);

  /// Of one of these experts; of a dense tensor `expert` is 0.
  [[nodiscard]] BlockScales of(std::uint64_t expert) const;

  /// Call `step` for those that are digested here, in runs that are contiguous in the tensor of the scales.
  void for_each_digested(Step const& step) const;

  /// Call `step` for those of one expert that are digested with some columns of some rows of the file, where these are
  /// rows of the native form.
  void for_each_in_rows(std::uint64_t expert, Range stored_rows, Range columns, Step const& step) const;

 private:
  void give(Range scales, Step const& step) const;
  void for_each_in_blocks(std::uint64_t expert, Range rows, Range columns,
                          std::function<void(Range scales)> const& step) const;
  void for_each_owned(std::uint64_t expert, std::function<void(Range scales)> const& step) const;

  Extent extent_;  // what is here
  std::vector<std::byte> bytes_;
  DType dtype_ = DType::BF16;
  bool stacked_ = false, swapped_ = false;
  Slice wanted_;
  std::uint64_t first_expert_ = 0;  // of the tensor
  Shape weight_;
  std::uint64_t block_rows_ = 0, block_columns_ = 0;
};

}  // namespace rankslice

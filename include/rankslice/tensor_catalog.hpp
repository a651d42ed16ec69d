#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "rankslice/dtype.hpp"

namespace rankslice {

/// Half-open range of bytes, elements, rows or experts.
struct Range {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;

  [[nodiscard]] std::uint64_t size() const { return end - begin; }
  [[nodiscard]] bool empty() const { return begin == end; }
  auto operator<=>(Range const&) const = default;
};

/// The part that both ranges share; empty (begin == end) when there is none.
[[nodiscard]] Range intersection(Range a, Range b);

/// Sizes of the axes, outermost first. Empty for a scalar.
using Shape = std::vector<std::uint64_t>;

/// Product of the axes; 1 for a scalar. The caller has excluded overflow (the format readers do).
[[nodiscard]] std::uint64_t element_count(Shape const& shape);

/// Bytes of a tensor; exact for sub-byte types as well.
[[nodiscard]] std::uint64_t byte_size(DType dtype, Shape const& shape);

/// "[256, 1024, 2048]"
[[nodiscard]] std::string to_string(Shape const& shape);

/// A contiguous byte range of one file of a list of files.
struct Extent {
  std::uint32_t file = 0;
  Range bytes;
  auto operator<=>(Extent const&) const = default;
};

/// A file with tensor data.
struct CatalogFile {
  std::string name;  ///< As users know it: the path below the checkpoint directory.
  std::string path;  ///< What `open` takes; empty for a file that is nowhere (of a store's source).
  std::uint64_t size = 0;
  std::int64_t modified_ns = 0;  ///< Time of its last change when its header was read; 0 when not known.
};

struct CatalogTensor {
  std::string name;
  DType dtype = DType::BF16;
  Shape shape;
  Extent extent;
};

/// Where the bytes of every tensor are, whatever the format of the files: the planner, the reader and the writer see
/// only this. Tensors are ordered by (file, first byte, name).
struct TensorCatalog {
  std::vector<CatalogFile> files;
  std::vector<CatalogTensor> tensors;
};

}  // namespace rankslice

#pragma once

#include <cstdint>

namespace rankslice {

/// What the threads of a block do to transpose one tile of a matrix through shared memory. Plain functions, which the
/// host compiles and tests as well.

constexpr std::uint32_t kTileSide = 32;  // a warp reads and writes rows of a tile
constexpr std::uint32_t kTileThreads = 8 * kTileSide;

/// to[c·to_stride + r] = from[r·columns + c]
template <typename Element>
struct TransposeTask {
  Element const* from;
  Element* to;
  std::uint64_t rows, columns, to_stride;
};

/// Rows are an odd number of 4-byte words apart, so that a column of the tile touches every bank once.
template <typename Element>
struct TransposeTile {
  static constexpr std::uint32_t kPitch = kTileSide + (sizeof(Element) < 4 ? 4 / sizeof(Element) : 1);
  Element elements[kTileSide][kPitch];
};

constexpr std::uint64_t tiles_along(std::uint64_t size) { return (size + kTileSide - 1) / kTileSide; }

constexpr std::uint64_t tile_count(std::uint64_t rows, std::uint64_t columns) {
  return tiles_along(rows) * tiles_along(columns);
}

/// First all threads of the block that has the tile, …
template <typename Element>
constexpr void load_tile(TransposeTask<Element> const& task, std::uint64_t tile, std::uint32_t thread,
                         TransposeTile<Element>& shared) {
  auto const across = tiles_along(task.columns);
  auto const column = tile % across * kTileSide + thread % kTileSide;
  for (auto i = thread / kTileSide; i < kTileSide; i += kTileThreads / kTileSide) {
    auto const row = tile / across * kTileSide + i;
    if (row < task.rows && column < task.columns) {
      shared.elements[i][thread % kTileSide] = task.from[row * task.columns + column];
    }
  }
}

/// … then, when all have done so, all again.
template <typename Element>
constexpr void store_tile(TransposeTask<Element> const& task, std::uint64_t tile, std::uint32_t thread,
                          TransposeTile<Element> const& shared) {
  auto const across = tiles_along(task.columns);
  auto const row = tile / across * kTileSide + thread % kTileSide;
  for (auto i = thread / kTileSide; i < kTileSide; i += kTileThreads / kTileSide) {
    auto const column = tile % across * kTileSide + i;
    if (row < task.rows && column < task.columns) {
      task.to[column * task.to_stride + row] = shared.elements[thread % kTileSide][i];
    }
  }
}

}  // namespace rankslice

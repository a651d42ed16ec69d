#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "rankslice/tensor_catalog.hpp"

#include "core/literals.hpp"

namespace rankslice {

/// What is read of each of some files: ascending runs with gaps between them. Pure.
[[nodiscard]] std::vector<std::vector<Range>> runs_by_file(std::vector<Extent> const& extents, std::size_t files);

/// A part of a file that is read at once.
struct PlannedBlock {
  std::uint32_t file = 0;
  Range bytes;                  ///< Begins and ends at multiples of the alignment, perhaps behind the end of the file.
  std::uint64_t requested = 0;  ///< Bytes of it that will be asked for, as often as they are.
  bool operator==(PlannedBlock const&) const = default;
};

struct BlockLimits {
  std::uint64_t alignment = 1;      ///< A power of two, at most `bytes`.
  std::uint64_t most_gap = 16_KiB;  ///< Between what is wanted: so much costs less to read than to skip.
  std::uint64_t bytes = 1_MiB;      ///< Of a block, at most; a multiple of the alignment.
};

struct BlockPlan {
  std::vector<PlannedBlock> blocks;  ///< In the order in which their bytes are asked for first. They do not overlap.
  std::uint64_t wanted = 0;          ///< Bytes of the extents, each once.
  std::uint64_t read = 0;            ///< Of the blocks: the same with gaps and edges.
};

/// How to read some extents, which come in the order of the requests. Extents of one file that touch, overlap, share
/// an aligned unit or have only a small gap between them are read together, in blocks of the same size but for the last
/// one; no byte is read twice. Pure.
[[nodiscard]] BlockPlan plan_blocks(std::vector<Extent> const& extents, BlockLimits const& limits = {});

/// What of the extents lies in some parts of their files, in the same order; `parts` by file, ascending and with gaps
/// between them. Pure.
[[nodiscard]] std::vector<Extent> within(std::vector<Extent> const& extents,
                                         std::vector<std::vector<Range>> const& parts);

/// What of some ascending runs is not in the parts, which are ascending too. Pure.
[[nodiscard]] std::vector<Range> without(std::vector<Range> const& runs, std::vector<Range> const& parts);

}  // namespace rankslice

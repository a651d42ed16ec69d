#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "rankslice/checkpoint.hpp"
#include "rankslice/mesh.hpp"

#include "core/holdings.hpp"
#include "core/literals.hpp"

namespace rankslice {

/// Note [Rows read once]. Where the rows that a rank holds are columns of the file and short, it would read the file's
/// rows whole, and so would every other rank of its `ep_shard` group: S times the same bytes. Instead each of them
/// reads a band of the stored rows whole, 1/S of them, and hands every rank of the group its columns of that band.

inline constexpr auto kRowBlockBytes = 8_MiB;

/// Some stored rows of one expert in an HF tensor, which the ranks of a group read together and exchange at once.
struct RowBlock {
  StoredPiece const* piece = nullptr;  ///< In the storage, which outlives the block.
  std::uint64_t expert = 0;
  Range rows;  ///< Of the expert's matrix as the file has it: columns of the native form.
};

/// What a rank exchanges with those that hold other rows of the same experts.
struct RowExchangePlan {
  std::vector<int> group{};                 ///< Ranks of the world, by `ep_shard`.
  std::size_t place = 0;                    ///< This rank's in the group.
  std::vector<std::uint32_t> parameters{};  ///< Whose rows are exchanged, ascending: the same on every rank.
  std::vector<RowBlock> blocks{};           ///< The same in the whole group.
  std::vector<Range> batches{};             ///< Of `blocks`: as many on every rank, which agree after each of them.
};

/// Whether the ranks of a mesh exchange rows of a parameter that they hold as it says. Pure, as are the others.
/// @throws PlanError when `ep_shard` does not divide the rows (rule 15).
[[nodiscard]] bool exchanges_rows(Parameter const& parameter, Form storage_form, Mesh const& mesh);

/// What `rank` exchanges of all parameters that are held as the mesh says, in the order of the files.
/// A block has up to so many bytes of a whole group in the native form, which bounds the memory of the exchange, and at
/// least one stored row. @throws PlanError as above, and as `locate`.
[[nodiscard]] RowExchangePlan plan_row_exchange(Storage const& storage, Model const& model, Holdings const& holdings,
                                                int rank, std::uint64_t batch_bytes = 1_GiB,
                                                std::uint64_t block_bytes = kRowBlockBytes);

/// The stored rows of a block that a place of the group reads; may be empty.
[[nodiscard]] Range band_of(RowBlock const& block, std::size_t place, std::size_t places);

/// Where stored rows of a block stand in the file of its piece.
[[nodiscard]] Range bytes_of(Model const& model, RowBlock const& block, Range rows);

/// What is read for a plan, with block scales, in the order in which it is read.
[[nodiscard]] std::vector<Extent> row_extents(Model const& model, RowExchangePlan const& plan);

/// Every message has its values and behind them their digests: as stored, as converted, and of their block scales.
inline constexpr std::size_t kRowSums = 3;
inline constexpr std::uint64_t kRowSumBytes = kRowSums * sizeof(std::uint64_t);

/// Bytes of the values that one place hands to any other for a block, in the native form.
[[nodiscard]] std::uint64_t row_value_bytes(Model const& model, RowExchangePlan const& plan, RowBlock const& block,
                                            std::size_t from);

/// Bytes of one rank's exchange. Block scales every rank reads of all its experts, whoever reads the rows.
struct RowTraffic {
  std::uint64_t read = 0;          ///< For the group: all of it is wanted by one of its ranks.
  std::uint64_t wanted_alone = 0;  ///< Without an exchange the rank would want so much of the same parameters …
  std::uint64_t read_alone = 0;    ///< … and read so much.
  std::uint64_t sent = 0;          ///< Values in the native form, and their digests.
  std::uint64_t received = 0;
};

/// Of the rank whose plan it is.
[[nodiscard]] RowTraffic row_traffic(Model const& model, RowExchangePlan const& plan);

/// By rank, where all of them hold what the mesh says; in time that grows with tensors × `ep_shard` + ranks.
/// @throws PlanError when `ep_shard` does not divide the rows (rule 15).
[[nodiscard]] std::vector<RowTraffic> row_traffic(Model const& model, Form storage_form, Mesh const& mesh);

}  // namespace rankslice

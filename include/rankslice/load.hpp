#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>

#include "rankslice/device.hpp"
#include "rankslice/options.hpp"
#include "rankslice/state_dict.hpp"

namespace rankslice {

class Communicator;

/// Who reads what several ranks need: the dense tensors that every rank holds whole, and rows of experts that are short
/// columns of the file (`Parameter::read_for`), where `ep_shard` divides these among ranks.
enum class DenseReading : std::uint8_t {
  automatic,  ///< `once` where the ranks are on several hosts, else `each_rank`: those of one host share a page cache.
  each_rank,  ///< Every rank reads all of it.
  /// Every rank reads a share and passes it on: those that need a byte read it once, together. A dense tensor that was
  /// misread then is the same on all: `verify` finds that by a reference or by `reread` only, as replicas do not
  /// differ.
  once,
};

/// "auto", "each-rank", "once"
[[nodiscard]] std::string_view name(DenseReading reading);
/// The inverse of `name`; nothing for an unknown one.
[[nodiscard]] std::optional<DenseReading> parse_dense_reading(std::string_view name);

/// What `automatic` stands for among these ranks, and anything else for itself. The same on every rank. Local.
/// @throws UsageError for `once` where nothing can be sent from rank to rank
[[nodiscard]] DenseReading choose(DenseReading asked, Communicator const& world);

/// On which pages of host memory large tensors stand.
enum class HugePages : std::uint8_t {
  automatic,  ///< On huge pages where the system gives them.
  on,         ///< … and UsageError where it does not, which is looked at before and after reading; and with a device.
  off,        ///< On small ones.
};

/// "auto", "on", "off"
[[nodiscard]] std::string_view name(HugePages pages);
/// The inverse of `name`; nothing for an unknown one.
[[nodiscard]] std::optional<HugePages> parse_huge_pages(std::string_view name);

struct LoadOptions {
  /// Which tensors (`select_tensors`); all of them when empty.
  KeySelection keys{};
  /// Where the tensors are to be; null: in host memory. One for each rank.
  std::shared_ptr<Device> device{};
  /// `full` digests every block while it is in the staging buffer, for `verify`.
  VerifyLevel verify = VerifyLevel::full;
  DenseReading dense = DenseReading::automatic;
  HugePages huge_pages = HugePages::automatic;  ///< Of tensors of at least 128 KiB, side by side in one mapping.
  CallOptions call{};
};

/// Load this rank's slice: its experts of every stacked tensor and all dense tensors, in the native form. Reads each
/// byte that it owns once and no other, but what ranks read for one another (`LoadOptions::dense`);
/// needs the owned bytes and a bounded staging buffer: with a device, a few MiB of it there and as much on the host,
/// and for what is passed on up to 48 MiB more of the host's. Collective, with the same mesh and options on every rank,
/// but for the device.
/// @throws PlanError for a mesh that is not one of these ranks or not the same on all of them, or whose `ep_shard` does
/// not divide the rows; IoError (also for a file that changes meanwhile), FormatError, DeviceError. The same on every
/// rank, a PlanError as UsageError.
[[nodiscard]] StateDict load(std::shared_ptr<Checkpoint const> const& source, Mesh const& mesh, Communicator& world,
                             LoadOptions const& options = {});

/// Rank-local: the same for one coordinate of a mesh, without any communication. @throws PlanError also for a
/// coordinate outside the mesh.
[[nodiscard]] StateDict load(std::shared_ptr<Checkpoint const> const& source, Mesh const& mesh,
                             MeshCoordinate const& coordinate, LoadOptions const& options = {});

struct FillOptions {
  /// `full` digests every block while it is in the staging buffer, for `verify`.
  VerifyLevel verify = VerifyLevel::full;
  DenseReading dense = DenseReading::automatic;
  CallOptions call{};
};

/// Bytes of this rank.
struct FillReport {
  std::uint64_t bytes_read = 0;      ///< Of the storage.
  std::uint64_t bytes_received = 0;  ///< Of what others read.
};

/// Read the values of a state from its source into the memory that it has, on the host or on devices that do nothing
/// else with it: of every tensor the part that this rank holds, once, and no byte of other parts (but for block scales,
/// and rows that are columns of the file), but what others read for it (`FillOptions::dense`). `state.read` becomes
/// what was read, by whoever did it. When it throws, values are undefined, and nothing counts as read. Collective, with
/// the same source and options on every rank. @throws PlanError for states that are not what they say or have other
/// sources, or values in no file, as UsageError; IoError, FormatError, DeviceError
FillReport fill(StateDict& state, Communicator& world, FillOptions const& options = {});

/// Rank-local: the same without any communication. @throws PlanError, IoError, FormatError, DeviceError
FillReport fill(StateDict& state, FillOptions const& options = {});

}  // namespace rankslice

#pragma once

#include <memory>

#include "rankslice/device.hpp"
#include "rankslice/options.hpp"
#include "rankslice/state_dict.hpp"

namespace rankslice {

struct LoadOptions {
  /// Which tensors (`select_tensors`); all of them when empty.
  KeySelection keys{};
  /// Where the tensors are to be; null: in host memory. One for each rank.
  std::shared_ptr<Device> device{};
  /// `full` digests every block while it is in the staging buffer, for `verify`.
  VerifyLevel verify = VerifyLevel::full;
  CallOptions call{};
};

/// Load this rank's slice: its experts of every stacked tensor and all dense tensors, in the native form. Reads each
/// byte that it owns once and no other; needs the owned bytes and a bounded staging buffer: with a device, a few MiB of
/// it there and as much on the host. Collective, with the same mesh and options on every rank, but for the device.
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
  CallOptions call{};
};

/// Read the values of a state from its source into the memory that it has, on the host or on devices that do nothing
/// else with it: of every tensor the part that this rank holds, once, and no byte of other parts (but for block scales,
/// and rows that are columns of the file); `state.read` becomes what was read. When it throws, values are undefined,
/// and nothing counts as read. Collective, with the same source and options on every rank. @throws PlanError for states
/// that are not what they say or have other sources, or values in no file, as UsageError; IoError, FormatError,
/// DeviceError
void fill(StateDict& state, Communicator& world, FillOptions const& options = {});

/// Rank-local: the same without any communication. @throws PlanError, IoError, FormatError, DeviceError
void fill(StateDict& state, FillOptions const& options = {});

}  // namespace rankslice

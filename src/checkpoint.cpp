#include "rankslice/checkpoint.hpp"

#include "checkpoint_parts.hpp"

namespace rankslice {

std::shared_ptr<Checkpoint const> open_checkpoint(std::string const& path, Communicator& world,
                                                  OpenOptions const& options) {
  CheckpointParts parts;
  std::vector<std::byte> packed;
  on_every_rank(world, [&] {
    if (world.rank() != 0) return;
    parts = read_checkpoint_parts(path, options);
    if (world.size() > 1) packed = pack(parts);
  });
  std::shared_ptr<Checkpoint const> checkpoint;
  if (world.size() > 1) broadcast_vector(world, packed, 0);
  on_every_rank(world, [&] {
    if (world.rank() != 0) parts = unpack(packed);
    checkpoint = std::make_shared<Checkpoint const>(assemble(std::move(parts)));
  });
  return checkpoint;
}

std::shared_ptr<Checkpoint const> open_checkpoint(std::string const& path, OpenOptions const& options) {
  return std::make_shared<Checkpoint const>(assemble(read_checkpoint_parts(path, options)));
}

}  // namespace rankslice

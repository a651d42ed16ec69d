#include "rankslice/checkpoint.hpp"

#include "agreed_threads.hpp"
#include "checkpoint_parts.hpp"

namespace rankslice {

namespace {

/// That parse headers. All processors of one who is alone; ranks of a job parse all at once, each the same.
std::size_t threads_of_one(OpenOptions const& options) {
  return static_cast<std::size_t>(with_threads({.threads = options.threads}).threads);
}

}  // namespace

std::shared_ptr<Checkpoint const> open_checkpoint(std::string const& path, Communicator& world,
                                                  OpenOptions const& options) {
  CheckpointParts parts;
  std::vector<std::byte> packed;
  on_every_rank(world, [&] {
    if (world.rank() != 0) return;
    parts = read_checkpoint_parts(path, options);
    if (world.size() > 1) {
      packed = pack(parts);
    } else {
      parts.threads = threads_of_one(options);
    }
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
  auto parts = read_checkpoint_parts(path, options);
  parts.threads = threads_of_one(options);
  return std::make_shared<Checkpoint const>(assemble(std::move(parts)));
}

}  // namespace rankslice

#include "rankslice/device.hpp"

#include "rankslice/communicator.hpp"
#include "rankslice/error.hpp"

namespace rankslice {

int device_of_rank(int rank_on_host, int visible_devices) {
  if (visible_devices < 1) throw DeviceError("no device is visible");
  return rank_on_host % visible_devices;
}

int rank_on_host(Communicator const& world) {
  auto const& mine = world.host(world.rank());
  int lower = 0;
  for (int rank = 0; rank < world.rank(); ++rank) lower += world.host(rank) == mine ? 1 : 0;
  return lower;
}

}  // namespace rankslice

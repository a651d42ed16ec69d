#include <algorithm>
#include <array>
#include <utility>

#include "rankslice/communicator.hpp"
#include "rankslice/load.hpp"

namespace rankslice {

namespace {

using Named = std::pair<DenseReading, std::string_view>;

constexpr std::array kReadings{Named{DenseReading::automatic, "auto"}, Named{DenseReading::each_rank, "each-rank"},
                               Named{DenseReading::once, "once"}};

}  // namespace

std::string_view name(DenseReading reading) { return std::ranges::find(kReadings, reading, &Named::first)->second; }

std::optional<DenseReading> parse_dense_reading(std::string_view name) {
  auto const found = std::ranges::find(kReadings, name, &Named::second);
  return found == kReadings.end() ? std::nullopt : std::optional(found->first);
}

DenseReading choose(DenseReading asked, Communicator const& world) {
  if (asked == DenseReading::automatic) {
    auto const several_hosts = first_ranks_of_hosts(world).size() > 1;
    return several_hosts && world.can_send() ? DenseReading::once : DenseReading::each_rank;
  }
  if (asked == DenseReading::once && world.size() > 1 && !world.can_send()) {
    throw UsageError("dense tensors can be read once only where ranks can send to one another");
  }
  return asked;
}

}  // namespace rankslice

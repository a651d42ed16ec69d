#include "verify/shared_mismatches.hpp"

#include <nlohmann/json.hpp>

namespace rankslice {

namespace {

using nlohmann::json;

std::vector<std::byte> pack(std::vector<Mismatch> const& mismatches) {
  auto list = json::array();
  for (auto const& mismatch : mismatches) {
    list.push_back({mismatch.tensor, mismatch.expert, mismatch.rank, mismatch.what});
  }
  auto const packed = json::to_cbor(list);
  auto const bytes = std::as_bytes(std::span(packed));
  return {bytes.begin(), bytes.end()};
}

void unpack(std::vector<std::byte> const& bytes, std::vector<Mismatch>& mismatches) {
  auto const* const data = reinterpret_cast<std::uint8_t const*>(bytes.data());
  for (auto const& item : json::from_cbor(data, data + bytes.size())) {
    mismatches.push_back({.tensor = item[0], .expert = item[1], .rank = item[2], .what = item[3]});
  }
}

}  // namespace

void share_mismatches(std::vector<Mismatch>& mismatches, Communicator& world) {
  if (world.size() == 1) return;
  auto const of_ranks = world.gather(pack(mismatches), 0);
  std::vector<Mismatch> all;
  for (auto const& bytes : of_ranks) unpack(bytes, all);
  auto shared = pack(all);
  broadcast_vector(world, shared, 0);
  mismatches.clear();
  unpack(shared, mismatches);
}

}  // namespace rankslice

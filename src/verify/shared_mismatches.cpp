#include "verify/shared_mismatches.hpp"

#include <nlohmann/json.hpp>

#include "comm/checked_bytes.hpp"
#include "core/packed_json.hpp"

namespace rankslice {

namespace {

using nlohmann::json;

constexpr std::size_t kMostOfARank = 1000;  // rank 0 gathers those of all ranks, …
constexpr std::size_t kMost = 10'000;       // … and these go to every rank

std::vector<std::byte> pack(VerifyReport const& report) {
  auto list = json::array();
  for (auto const& mismatch : report.mismatches) {
    list.push_back({mismatch.tensor, mismatch.expert, mismatch.rank, mismatch.what});
  }
  return pack_json({{"unlisted", report.unlisted}, {"mismatches", std::move(list)}});
}

void unpack(std::vector<std::byte> const& bytes, VerifyReport& report) {
  auto const packed = unpack_json(bytes);
  report.unlisted += packed["unlisted"].get<std::uint64_t>();
  for (auto const& item : packed["mismatches"]) {
    report.mismatches.push_back({.tensor = item[0], .expert = item[1], .rank = item[2], .what = item[3]});
  }
}

void keep_first(std::size_t most, VerifyReport& report) {
  if (report.mismatches.size() <= most) return;
  report.unlisted += report.mismatches.size() - most;
  report.mismatches.resize(most);
}

}  // namespace

void share_mismatches(VerifyReport& report, Communicator& world) {
  if (world.size() == 1) return;
  keep_first(kMostOfARank, report);
  auto const of_ranks = gather_checked(world, pack(report), 0);
  VerifyReport all;
  for (auto const& bytes : of_ranks) {
    unpack(bytes, all);
    keep_first(kMost, all);
  }
  auto shared = pack(all);
  broadcast_vector(world, shared, 0);
  report.mismatches.clear();
  report.unlisted = 0;
  unpack(shared, report);
}

}  // namespace rankslice

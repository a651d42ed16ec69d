#include "agreed_threads.hpp"

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "comm/packing.hpp"
#include "io/processors.hpp"

namespace rankslice {

namespace {

std::vector<std::byte> pack(Processors const& processors) {
  Packer packer;
  packer.put(std::uint64_t{processors.ids.size()});
  for (auto const id : processors.ids) packer.put(id);
  packer.put(processors.quota ? processors.quota->processors : 0.0);
  packer.put(processors.quota ? processors.quota->group : std::string());
  return std::move(packer.bytes);
}

Processors unpack(std::vector<std::byte> const& bytes) {
  Unpacker unpacker(bytes);
  Processors processors;
  std::uint64_t count = 0;
  unpacker.get(count);
  for (; count > 0; --count) {
    int id = 0;
    unpacker.get(id);
    processors.ids.push_back(id);
  }
  CpuQuota quota;
  unpacker.get(quota.processors);
  unpacker.get(quota.group);
  unpacker.expect_end();
  if (quota.processors > 0) processors.quota = std::move(quota);
  return processors;
}

/// No two ranks are on one host. The same on every rank.
bool each_has_a_host(Communicator const& world) {
  std::set<std::string> hosts;
  for (int rank = 0; rank < world.size(); ++rank) hosts.insert(world.host(rank));
  return static_cast<int>(hosts.size()) == world.size();
}

}  // namespace

CallOptions with_threads(CallOptions call, Communicator& world) {
  if (each_has_a_host(world)) return with_threads(std::move(call));
  // Also where this rank's are given: other ranks may ask.
  auto const of_ranks = all_gather(world, pack(own_processors()));
  if (call.threads > 0) return call;
  std::vector<Processors> of_host;
  std::size_t mine = 0;
  for (int rank = 0; rank < world.size(); ++rank) {
    if (world.host(rank) != world.host(world.rank())) continue;
    if (rank == world.rank()) mine = of_host.size();
    of_host.push_back(unpack(of_ranks[static_cast<std::size_t>(rank)]));
  }
  call.threads = fair_threads(of_host, mine);
  return call;
}

CallOptions with_threads(CallOptions call) {
  if (call.threads <= 0) call.threads = fair_threads({own_processors()}, 0);
  return call;
}

}  // namespace rankslice

#include "reread.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <memory>

#include "io/direct_reader.hpp"
#include "parallel_reading.hpp"
#include "verify/compare.hpp"
#include "verify/second_readers.hpp"
#include "verify/traffic.hpp"
#include "watch.hpp"

namespace rankslice {

namespace {

/// What a thread opens files by: past the page cache where the file system does that. Tells where that is not known.
OpenFile open_directly(std::atomic<bool>& all_direct) {
  return [&all_direct, block = std::make_shared<DirectBlock>()](std::string const& path) {
    auto file = open_direct_reader(path, *block);
    if (!file.past_page_cache) all_direct = false;
    return std::move(file.reader);
  };
}

/// One more reading of what another rank, or this one, has read.
struct SecondReading {
  Digests digests;
  Reread how;
};

SecondReading read_slices(Checkpoint const& source, std::vector<PlannedSlice> const& slices, bool past_page_cache,
                          CallOptions const& call, Communicator* world) {
  auto const bytes = stored_bytes(source.storage, source.model, slices).read;
  SecondReading second;
  second.how.bytes = bytes;
  std::atomic<bool> all_direct = true;
  PieceReading const reading{
      .how = call.reading, .threads = call.threads, .done = watch(call, "verify", bytes, world), .make_open = [&] {
        return past_page_cache ? open_directly(all_direct) : OpenFile(open_reader);
      }};
  second.digests = digest_slices(source.model, slices, source.storage, reading);
  second.how.past_page_cache = past_page_cache && all_direct;
  return second;
}

void compare(Model const& model, Digests const& read, Digests const& again, std::string const& again_by, int rank,
             VerifyReport& report) {
  auto const found = differences(model, NamedDigests{again_by, again}, {"read", read}, rank);
  report.mismatches.insert(report.mismatches.end(), found.begin(), found.end());
}

/// Hand a table to the rank whose bytes it is of, and get one's own.
void exchange(DigestTable const& sent, int to, DigestTable& received, int from, Communicator& world) {
  auto const receiving = world.start_receive(std::as_writable_bytes(received.values()), from);
  auto const sending = world.start_send(std::as_bytes(sent.values()), to);
  receiving->wait();
  sending->wait();
}

/// The least that all ranks can say.
Reread agree(Reread const& mine, Communicator& world) {
  std::vector<std::uint64_t> least{mine.another_rank ? 1U : 0U, mine.another_host ? 1U : 0U,
                                   mine.past_page_cache ? 1U : 0U};
  std::vector<std::uint64_t> bytes{mine.bytes};
  world.all_reduce(least, Reduce::min);
  world.all_reduce(bytes, Reduce::sum);
  return {.another_rank = least[0] != 0,
          .another_host = least[1] != 0,
          .past_page_cache = least[2] != 0,
          .bytes = bytes.front()};
}

std::vector<std::string> hosts_of(Communicator const& world) {
  std::vector<std::string> hosts;
  for (int rank = 0; rank < world.size(); ++rank) hosts.push_back(world.host(rank));
  return hosts;
}

}  // namespace

void read_again(Checkpoint const& source, ReadByRank const& slices_of, Digests const& read, Communicator& world,
                CallOptions const& call, VerifyReport& report) {
  auto const hosts = hosts_of(world);
  auto const second_reader = second_readers(hosts);
  auto const mine = world.rank();
  auto const reader = second_reader[static_cast<std::size_t>(mine)];
  auto const first = static_cast<int>(std::ranges::find(second_reader, mine) - second_reader.begin());
  auto const same_host = hosts[static_cast<std::size_t>(first)] == hosts[static_cast<std::size_t>(mine)];
  SecondReading second;
  Digests received;
  on_every_rank(world, [&] {
    second = read_slices(source, slices_of(first), same_host, call, &world);
    received = second.digests;  // memory that may lack now, but not when others wait for this rank
  });
  second.how.another_rank = first != mine;
  second.how.another_host = !same_host;
  if (first != mine) {
    on_every_rank(world, [&] {
      exchange(second.digests.source, first, received.source, reader, world);
      if (converts(source.model)) exchange(second.digests.stored, first, received.stored, reader, world);
    });
  }
  report.reread = agree(second.how, world);
  report.reference = "reread";
  compare(source.model, read, received, fmt::format("read again by rank {}", reader), mine, report);
}

void read_again(Checkpoint const& source, std::vector<PlannedSlice> const& slices, Digests const& read, int rank,
                CallOptions const& call, VerifyReport& report) {
  auto const second = read_slices(source, slices, true, call, nullptr);
  report.reread = second.how;
  report.reference = "reread";
  compare(source.model, read, second.digests, "read again", rank, report);
}

void read_again_after(Checkpoint const& source, ReadByRank const& slices_of, Digests const& before, Communicator& world,
                      CallOptions const& call, VerifyReport& report) {
  SecondReading second;
  on_every_rank(world, [&] { second = read_slices(source, slices_of(world.rank()), true, call, &world); });
  world.all_reduce(second.digests.source.values(), Reduce::sum);
  world.all_reduce(second.digests.stored.values(), Reduce::sum);
  auto const how = agree(second.how, world);
  report.reread->bytes += how.bytes;
  report.reread->past_page_cache = report.reread->past_page_cache && how.past_page_cache;
  report.reread->another_rank = report.reread->another_host = false;  // who read it then is not known
  if (world.rank() == 0) compare(source.model, before, second.digests, "read again", -1, report);
}

}  // namespace rankslice

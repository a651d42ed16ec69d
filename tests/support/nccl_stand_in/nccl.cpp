// NCCL's part of the stand-in: see nccl_stand_in.hpp.

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <thread>
#include <utility>

#include "support/nccl_stand_in/state.hpp"

namespace rankslice::test {
namespace {

constexpr int kLaunchPolls = 2;

thread_local int group_depth = 0;
thread_local std::vector<Operation> group;

std::lock_guard<std::mutex> locked() { return std::lock_guard(state().mutex); }

/// Whether the communicator may be used by a call other than the question after its state, and the abort.
bool usable(ncclComm_t comm, char const* call) {
  if (comm == nullptr || comm->dead) {
    note_misuse(fmt::format("{} after the communicator was aborted or destroyed", call));
  } else if (comm->failed) {
    note_misuse(fmt::format("{} after a failure", call));
  } else if (comm->in_progress) {
    note_misuse(fmt::format("{} while an earlier call is in progress", call));
  } else {
    return true;
  }
  return false;
}

std::vector<ncclComm_t> const& clique_of(ncclComm_t comm) { return state().cliques[comm->id]; }

bool everyone(ncclComm_t comm, bool ncclComm::*has) {
  auto const& members = clique_of(comm);
  return static_cast<int>(members.size()) == comm->size &&
         std::all_of(members.begin(), members.end(), [&](ncclComm_t member) { return member->*has; });
}

/// What NCCL's own threads do in the background.
void work_in_background(ncclComm_t comm) {
  if (comm->dead || comm->error != ncclSuccess) return;
  auto const& rank = comm->knobs->rank;
  if (!comm->initialised) {
    if (rank.init_never_ends || static_cast<int>(clique_of(comm).size()) < comm->size) return;
    if (rank.init_error != ncclSuccess) comm->error = rank.init_error;
    comm->initialised = true;
  } else if (!comm->launching.empty()) {
    comm->launching.front().stream->items.push_back({.operations = std::exchange(comm->launching, {})});
  } else if (comm->finalising && everyone(comm, &ncclComm::finalising)) {
    comm->finalised = true;
  }
}

bool works_in_background(ncclComm_t comm) {
  return !comm->initialised || !comm->launching.empty() || (comm->finalising && !comm->finalised);
}

/// The operation of `comm` at the head of its stream that is `wanted`.
template <typename Wanted>
Operation* at_head(ncclComm_t comm, Wanted const& wanted) {
  for (auto* const stream : state().streams) {
    if (stream->items.empty()) continue;
    for (auto& operation : stream->items.front().operations) {
      if (operation.comm == comm && !operation.done && wanted(operation)) return &operation;
    }
  }
  return nullptr;
}

/// Operations that knobs take away never match.
bool takes_part(Operation const& operation) {
  auto const& rank = operation.comm->knobs->rank;
  bool const lost = rank.lost_from >= 0 && operation.number >= rank.lost_from;
  return !lost && operation.number != rank.fails_at;
}

bool exchange(Operation& send) {
  auto* const from = send.comm;
  for (auto* const to : clique_of(from)) {
    if (to->rank != send.peer) continue;
    auto* const receive = at_head(to, [&](Operation const& other) {
      return other.call == Call::receive && other.peer == from->rank && takes_part(other);
    });
    if (receive == nullptr) return false;
    if (receive->size() != send.size()) {
      note_misuse(fmt::format("{} bytes were sent, but {} received", send.size(), receive->size()));
    }
    std::memcpy(receive->bytes, send.bytes, std::min(receive->size(), send.size()));
    receive->done = send.done = true;
    return true;
  }
  return false;
}

std::uint64_t combine(std::uint64_t a, std::uint64_t b, ncclRedOp_t op) {
  if (op == ncclSum) return a + b;
  return op == ncclMin ? std::min(a, b) : std::max(a, b);
}

void reduce(std::vector<Operation*> const& all) {
  for (std::size_t i = 0; i < all[0]->count; ++i) {
    std::uint64_t sum = 0;
    for (auto const* const one : all) {
      std::uint64_t value = 0;
      std::memcpy(&value, one->bytes + i * sizeof value, sizeof value);
      sum = one == all[0] ? value : combine(sum, value, one->op);
    }
    for (auto const* const one : all) std::memcpy(one->bytes + i * sizeof sum, &sum, sizeof sum);
  }
}

bool run_collective(Operation& operation) {
  std::vector<Operation*> all;
  for (auto* const member : clique_of(operation.comm)) {
    auto* const theirs = at_head(member, [](Operation const& other) {
      return (other.call == Call::broadcast || other.call == Call::reduce) && takes_part(other);
    });
    if (theirs == nullptr) return false;
    all.push_back(theirs);
  }
  auto const& first = *all[0];
  if (!std::all_of(all.begin(), all.end(), [&](Operation const* one) {
        return one->call == first.call && one->count == first.count && one->type == first.type &&
               one->peer == first.peer && one->op == first.op;
      })) {
    note_misuse("ranks made different collective calls at once");
  }
  if (first.call == Call::reduce) {
    reduce(all);
  } else {
    auto const root =
        std::find_if(all.begin(), all.end(), [&](auto const* one) { return one->comm->rank == one->peer; });
    for (auto* const one : all) std::memmove(one->bytes, (*root)->bytes, first.size());
  }
  for (auto* const one : all) one->done = true;
  return true;
}

/// Whether something happened at the head of the stream.
bool run_head(CUstream_st& stream) {
  auto& item = stream.items.front();
  bool moved = false;
  for (auto& operation : item.operations) {
    if (operation.comm->dead) operation.done = true;
    if (operation.done) continue;
    if (operation.number == operation.comm->knobs->rank.fails_at) {
      operation.comm->error = operation.comm->knobs->rank.failure;
    }
    if (!takes_part(operation) || operation.call == Call::receive) continue;
    moved = (operation.call == Call::send ? exchange(operation) : run_collective(operation)) || moved;
  }
  if (!std::all_of(item.operations.begin(), item.operations.end(), [](auto const& one) { return one.done; })) {
    return moved;
  }
  if (item.event != nullptr) --item.event->pending;
  stream.items.pop_front();
  return true;
}

ncclResult_t post(Operation operation, char const* call) {
  auto const lock = locked();
  if (!usable(operation.comm, call)) return ncclInvalidUsage;
  if (group_depth == 0) note_misuse(fmt::format("{} outside a group", call));
  auto const& memory = state().memory;
  auto const behind = memory.upper_bound(operation.bytes);
  if (behind == memory.begin() ||
      operation.bytes + operation.size() > std::prev(behind)->first + std::prev(behind)->second.bytes) {
    note_misuse(fmt::format("{} was given memory that a GPU does not see", call));
  }
  operation.number = operation.comm->knobs->operations++;
  ++state().counts.operations;
  group.push_back(operation);
  return ncclSuccess;
}

/// The others notice that a rank is gone.
void tell_others(ncclComm_t gone) {
  for (auto* const member : clique_of(gone)) {
    if (!member->dead && !member->finalised && member->error == ncclSuccess) member->error = ncclRemoteError;
  }
}

/// In progress where it will never return.
ncclResult_t abort_one(ncclComm_t comm) {
  auto const lock = locked();
  if (comm == nullptr || comm->dead) {
    note_misuse("ncclCommAbort a second time");
    return ncclInvalidUsage;
  }
  bool const others = std::any_of(state().comms.begin(), state().comms.end(), [&](auto const& other) {
    return other.get() != comm && other->knobs == comm->knobs && !other->dead;
  });
  if (others && group_depth == 0) note_misuse("ncclCommAbort waits for what lies on the GPU of another communicator");
  comm->dead = true;
  comm->launching.clear();
  ++state().counts.aborts[comm->rank];
  tell_others(comm);
  run_streams();
  return comm->knobs->rank.abort_never_returns ? ncclInProgress : ncclSuccess;
}

}  // namespace

void run_streams() {
  bool moved = true;
  while (moved) {
    moved = false;
    for (auto* const stream : state().streams) {
      while (!stream->items.empty() && run_head(*stream)) moved = true;
    }
  }
}

bool launching_on(cudaStream_t stream) {
  return std::any_of(state().comms.begin(), state().comms.end(), [&](auto const& comm) {
    return !comm->dead && !comm->launching.empty() && comm->launching.front().stream == stream;
  });
}

bool in_use(std::byte const* begin, std::size_t bytes) {
  auto const uses = [&](Operation const& operation) {
    return !operation.comm->dead && operation.bytes >= begin && operation.bytes < begin + bytes;
  };
  return std::any_of(state().streams.begin(), state().streams.end(), [&](cudaStream_t stream) {
    return std::any_of(stream->items.begin(), stream->items.end(), [&](StreamItem const& item) {
      return std::any_of(item.operations.begin(), item.operations.end(), uses);
    });
  });
}

void reset_stand_in() {
  auto const lock = locked();
  auto& all = state();
  for (auto* const stream : all.streams) delete stream;
  for (auto* const event : all.events) delete event;
  for (auto const& [begin, memory] : all.memory) delete[] begin;
  all.streams.clear();
  all.events.clear();
  all.memory.clear();
  all.comms.clear();
  all.cliques.clear();
  all.counts = {};
  all.misuse.clear();
}

StandInCounts stand_in_counts() {
  auto const lock = locked();
  return state().counts;
}

std::vector<std::string> stand_in_misuse() {
  auto const lock = locked();
  auto misuse = state().misuse;
  for (auto const& comm : state().comms) {
    if (!comm->dead) misuse.push_back(fmt::format("the communicator of rank {} was not given back", comm->rank));
  }
  if (!state().streams.empty()) misuse.push_back("a stream was not destroyed");
  if (!state().events.empty()) misuse.push_back("an event was not destroyed");
  if (!state().memory.empty()) misuse.push_back("memory was not freed");
  return misuse;
}

}  // namespace rankslice::test

using namespace rankslice::test;

extern "C" {

ncclResult_t ncclGetVersion(int* version) {
  *version = my_knobs()->rank.nccl_version;
  return ncclSuccess;
}

char const* ncclGetErrorString(ncclResult_t result) {
  return result == ncclRemoteError ? "remote process exited or there was a network error" : "internal error";
}

char const* ncclGetLastError(ncclComm_t /*comm*/) { return "the stand-in was told to fail"; }

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  static int number = 0;
  auto const lock = locked();
  *id = {};
  auto const text = fmt::format("clique {}", number++);
  std::copy(text.begin(), text.end(), std::begin(id->internal));
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int size, ncclUniqueId id, int rank, ncclConfig_t* config) {
  int device = 0;
  cudaGetDevice(&device);
  auto const lock = locked();
  auto made = std::make_unique<ncclComm>();
  made->id = id.internal;
  made->rank = rank;
  made->size = size;
  made->gpu = my_knobs()->rank.gpus.at(static_cast<std::size_t>(device));
  made->knobs = my_knobs();
  made->polls_left = made->knobs->rank.init_polls;
  made->in_progress = true;
  if (config->blocking != 0) note_misuse("a communicator that blocks");
  auto& members = state().cliques[made->id];
  members.push_back(made.get());
  std::sort(members.begin(), members.end(), [](auto const* a, auto const* b) { return a->rank < b->rank; });
  *comm = made.get();
  state().comms.push_back(std::move(made));
  return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
  auto const lock = locked();
  if (comm == nullptr || comm->dead || comm->failed) {
    note_misuse("ncclCommGetAsyncError after a failure, an abort or the end");
    return ncclInvalidUsage;
  }
  if (comm->polls_left > 0) {
    --comm->polls_left;
  } else {
    work_in_background(comm);
  }
  run_streams();
  *error = comm->error;
  if (comm->error == ncclSuccess && works_in_background(comm)) *error = ncclInProgress;
  comm->in_progress = *error == ncclInProgress;
  comm->failed = comm->error != ncclSuccess;
  return ncclSuccess;
}

ncclResult_t ncclGroupStart() {
  ++group_depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  if (--group_depth > 0 || group.empty()) return ncclSuccess;
  auto const lock = locked();
  auto* const comm = group.front().comm;
  state().counts.largest_group = std::max(state().counts.largest_group, static_cast<int>(group.size()));
  auto const collective = [](Operation const& one) { return one.call == Call::broadcast || one.call == Call::reduce; };
  if (group.size() > 1 && std::any_of(group.begin(), group.end(), collective)) {
    note_misuse("a group with a collective call, which must look the same on every rank");
  }
  comm->launching = std::exchange(group, {});
  comm->polls_left = kLaunchPolls;
  comm->in_progress = true;
  return ncclInProgress;
}

ncclResult_t ncclSend(void const* bytes, std::size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  auto* const sent = const_cast<std::byte*>(static_cast<std::byte const*>(bytes));
  return post(
      {.call = Call::send, .bytes = sent, .count = count, .type = type, .peer = peer, .comm = comm, .stream = stream},
      "ncclSend");
}

ncclResult_t ncclRecv(void* bytes, std::size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return post({.call = Call::receive,
               .bytes = static_cast<std::byte*>(bytes),
               .count = count,
               .type = type,
               .peer = peer,
               .comm = comm,
               .stream = stream},
              "ncclRecv");
}

ncclResult_t ncclBroadcast(void const* sent, void* received, std::size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
  if (sent != received) return ncclInvalidArgument;  // the stand-in knows broadcasts in place only
  return post({.call = Call::broadcast,
               .bytes = static_cast<std::byte*>(received),
               .count = count,
               .type = type,
               .peer = root,
               .comm = comm,
               .stream = stream},
              "ncclBroadcast");
}

ncclResult_t ncclAllReduce(void const* sent, void* received, std::size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream) {
  if (sent != received || type != ncclUint64) return ncclInvalidArgument;
  return post({.call = Call::reduce,
               .bytes = static_cast<std::byte*>(received),
               .count = count,
               .type = type,
               .op = op,
               .comm = comm,
               .stream = stream},
              "ncclAllReduce");
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  auto const lock = locked();
  if (!usable(comm, "ncclCommFinalize")) return ncclInvalidUsage;
  comm->finalising = true;
  comm->in_progress = true;
  return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  auto const lock = locked();
  if (!usable(comm, "ncclCommDestroy")) return ncclInvalidUsage;
  if (!comm->finalised) note_misuse("ncclCommDestroy waits for a communicator that was not finalised");
  comm->dead = true;
  ++state().counts.destroyed;
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  auto const stuck = abort_one(comm);
  while (stuck == ncclInProgress) std::this_thread::sleep_for(std::chrono::hours(1));
  return stuck;
}

}  // extern "C"

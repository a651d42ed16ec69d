#pragma once

// What NCCL's and CUDA's halves of the stand-in share. Everything is behind one lock.

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "support/nccl_stand_in/nccl_stand_in.hpp"

namespace rankslice::test {

/// A rank's knobs, and how many operations it has had.
struct Knobs {
  StandInRank rank;
  int operations = 0;
  std::set<int> contexts = {};  ///< The GPUs that it has used.
};

enum class Call { send, receive, broadcast, reduce };

struct Operation {
  Call call = Call::send;
  std::byte* bytes = nullptr;
  std::size_t count = 0;
  ncclDataType_t type = ncclUint8;
  int peer = 0;  ///< Or the root.
  ncclRedOp_t op = ncclSum;
  ncclComm_t comm = nullptr;
  cudaStream_t stream = nullptr;
  int number = 0;  ///< Of the rank's.
  bool done = false;

  [[nodiscard]] std::size_t size() const { return count * (type == ncclUint64 ? 8 : 1); }
};

/// What lies on a stream: the operations of a group, or an event.
struct StreamItem {
  std::vector<Operation> operations;
  cudaEvent_t event = nullptr;
};

struct Memory {
  std::size_t bytes = 0;
  std::optional<int> device;  ///< None: pinned host memory.
};

struct State {
  std::mutex mutex;
  std::set<cudaStream_t> streams;
  std::set<cudaEvent_t> events;
  std::map<std::byte const*, Memory> memory;
  std::vector<std::unique_ptr<ncclComm>> comms;  ///< The dead ones too, so that their use is noticed.
  std::map<std::string, std::vector<ncclComm_t>> cliques;
  StandInCounts counts;
  std::vector<std::string> misuse;
};

[[nodiscard]] State& state();
[[nodiscard]] std::shared_ptr<Knobs> const& my_knobs();

void note_misuse(std::string what);
/// Carries out what lies at the heads of all streams, as far as it goes.
void run_streams();
/// Whether operations that use the memory have not ended.
[[nodiscard]] bool in_use(std::byte const* begin, std::size_t bytes);
/// Whether NCCL is still bringing something onto the stream.
[[nodiscard]] bool launching_on(cudaStream_t stream);

}  // namespace rankslice::test

struct CUstream_st {
  std::deque<rankslice::test::StreamItem> items;
};

struct CUevent_st {
  int pending = 0;
};

struct ncclComm {
  std::string id;
  int rank = 0;
  int size = 0;
  int gpu = 0;
  std::shared_ptr<rankslice::test::Knobs> knobs;
  int polls_left = 0;        ///< Of what goes on in the background.
  bool in_progress = false;  ///< As the caller last heard.
  bool initialised = false;
  bool finalising = false;
  bool finalised = false;
  bool failed = false;  ///< The caller was told.
  bool dead = false;    ///< Aborted or destroyed.
  ncclResult_t error = ncclSuccess;
  std::vector<rankslice::test::Operation> launching;
};

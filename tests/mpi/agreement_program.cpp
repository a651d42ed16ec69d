// agreement_program TIMEOUT_MS FAULT RANK: ranks that agree on a step, go through a collective call and agree again,
// while FAULT strikes one of them. agreement_failures.py starts it and knows what must come of each fault.

#include <fmt/format.h>
#include <mpi.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "rankslice/mpi.hpp"

namespace {

using namespace rankslice;
using std::chrono::milliseconds;

struct Job {
  std::unique_ptr<Communicator> world;
  milliseconds timeout;
  bool struck;  ///< On the rank that the fault strikes.
};

using Fault = std::function<void(Job&)>;

/// `strike` inside a step of the struck rank, with nothing to do for the others.
Fault in_step(std::function<void(Job&)> const& strike) {
  return [strike](Job& job) {
    on_every_rank(*job.world, [&] {
      if (job.struck) strike(job);
    });
  };
}

void all_reduce_one(Communicator& world) {
  std::vector<std::uint64_t> one{1};
  world.all_reduce(one, Reduce::sum);
}

void work_slowly(Job& job) {
  auto const end = std::chrono::steady_clock::now() + 3 * job.timeout;
  while (std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(milliseconds(20));
    job.world->progress();
  }
}

void stop(Job& /*job*/) { std::raise(SIGSTOP); }

void be_silent(Job& job) { std::this_thread::sleep_for(20 * job.timeout); }

void do_nothing(Job& /*job*/) {}

/// Too many for MPI to take on before they are received.
constexpr std::size_t kManyBytes = std::size_t{8} << 20;

void send(Communicator& world, int to) {
  std::vector<std::byte> const bytes(kManyBytes, std::byte{1});
  world.start_send(bytes, to)->wait();
}

void receive(Communicator& world, int from) {
  std::vector<std::byte> bytes(kManyBytes);
  world.start_receive(bytes, from)->wait();
  if (bytes != std::vector<std::byte>(kManyBytes, std::byte{1})) throw VerifyError("other bytes came than were sent");
}

/// In a step, rank 1 sends to rank 2, and the others wait for them; the struck rank strikes first.
Fault in_transfer(std::function<void(Job&)> const& strike) {
  return [strike](Job& job) {
    on_every_rank(*job.world, [&] {
      if (job.struck) strike(job);
      if (job.world->rank() == 1) send(*job.world, 2);
      if (job.world->rank() == 2) receive(*job.world, 1);
    });
  };
}

/// In a step, all others send to rank 0; the struck rank strikes first.
Fault in_gather(std::function<void(Job&)> const& strike) {
  return [strike](Job& job) {
    on_every_rank(*job.world, [&] {
      if (job.struck) strike(job);
      if (job.world->rank() != 0) return send(*job.world, 0);
      for (int from = 1; from < job.world->size(); ++from) receive(*job.world, from);
    });
  };
}

/// The struck rank leaves its part of the transfer from rank 1 to rank 2 out.
void forget_a_transfer(Job& job) {
  on_every_rank(*job.world, [&] {
    if (job.struck) return;
    if (job.world->rank() == 1) send(*job.world, 2);
    if (job.world->rank() == 2) receive(*job.world, 1);
  });
}

void stop_before_a_collective(Job& job) {
  if (job.struck) std::raise(SIGSTOP);
  all_reduce_one(*job.world);
}

/// Ranks from 1 on work in a part of the world while rank 0 waits for them outside.
void stop_in_a_part(Job& job) {
  auto const part = job.world->split(job.world->rank() == 0 ? 0 : 1);
  if (job.struck) std::raise(SIGSTOP);
  std::ignore = part->agree({});
}

/// The struck rank works between two gathers, while the others wait in the second.
void work_slowly_between_collectives(Job& job) {
  all_reduce_one(*job.world);
  if (job.struck) work_slowly(job);
  all_reduce_one(*job.world);
}

void call_something_else(Job& job) {
  if (job.struck) {
    std::ignore = job.world->agree({});
  } else {
    all_reduce_one(*job.world);
  }
}

std::map<std::string, Fault> const& faults() {
  static std::map<std::string, Fault> const all{
      {"none", in_step(do_nothing)},
      {"stop", in_step(stop)},
      {"stop_before_a_collective", stop_before_a_collective},
      {"stop_in_a_part", stop_in_a_part},
      {"work_slowly", in_step(work_slowly)},
      {"work_slowly_between_collectives", work_slowly_between_collectives},
      {"be_silent", in_step(be_silent)},
      {"fail", in_step([](Job&) { throw FormatError("cut short at byte 7", "model.safetensors", "lm_head"); })},
      {"fail_alone",
       [](Job& job) {
         if (job.struck) throw FormatError("outside of any step");
       }},
      {"exit", in_step([](Job&) { _exit(3); })},
      {"kill", in_step([](Job&) { std::raise(SIGKILL); })},
      {"call_something_else", call_something_else},
      {"transfer", in_transfer(do_nothing)},
      {"stop_in_a_transfer", in_transfer(stop)},
      {"be_silent_in_a_transfer", in_transfer(be_silent)},
      {"work_slowly_in_a_transfer", in_transfer(work_slowly)},
      {"forget_a_transfer", forget_a_transfer},
      {"stop_in_a_gather", in_gather(stop)},
      {"work_slowly_in_a_gather", in_gather(work_slowly)},
  };
  return all;
}

void run(Job job, Fault const& fault) {
  on_every_rank(*job.world, [] {});
  fault(job);
  all_reduce_one(*job.world);
  on_every_rank(*job.world, [] {});
  if (job.world->rank() == 0) std::puts("done");
}

}  // namespace

int main(int argc, char** argv) {
  int level = MPI_THREAD_SINGLE;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &level);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  if (argc != 4 || !faults().contains(argv[2])) {
    std::fputs("usage: agreement_program TIMEOUT_MS FAULT RANK\n", stderr);
    MPI_Abort(MPI_COMM_WORLD, 2);
  }
  milliseconds const timeout(std::stoi(argv[1]));
  int code = 0;
  try {
    auto world = make_mpi_communicator(MPI_COMM_WORLD, {.timeout = timeout});
    run({std::move(world), timeout, rank == std::stoi(argv[3])}, faults().at(argv[2]));
  } catch (Error const& error) {
    code = static_cast<int>(error.code);
    bool const alone = error.rank < 0;
    if (alone || error.rank == rank) fmt::print(stderr, "rank {}: {}: {}\n", rank, error.file, error.what());
    if (alone) _exit(code);
  }
  MPI_Finalize();
  return code;
}

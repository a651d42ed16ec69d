// The ranks of a program without MPI load a checkpoint together through a group of the program's own: here threads that
// leave messages in a mailbox, which stand for actors, torch.distributed or mpi4py.
//
//   rank_threads CHECKPOINT RANKS

#include <rankslice/callbacks.hpp>
#include <rankslice/load.hpp>
#include <rankslice/verify.hpp>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <iostream>
#include <map>
#include <mutex>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

// Messages by sender, receiver and tag. Who sends waits for nobody; who receives gives up at a deadline.
class Mailbox {
 public:
  void send(int from, int to, int tag, std::span<std::byte const> bytes) {
    std::lock_guard const lock(mutex_);
    messages_[{from, to, tag}].emplace_back(bytes.begin(), bytes.end());
    arrived_.notify_all();
  }

  void receive(int from, int to, int tag, std::span<std::byte> bytes) {
    std::unique_lock lock(mutex_);
    auto& waiting = messages_[{from, to, tag}];
    if (!arrived_.wait_for(lock, std::chrono::seconds(30), [&] { return !waiting.empty(); }))
      throw std::runtime_error("nothing came from rank " + std::to_string(from));
    std::copy_n(waiting.front().begin(), bytes.size(), bytes.begin());
    waiting.pop_front();
  }

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::map<std::tuple<int, int, int>, std::deque<std::vector<std::byte>>> messages_;
};

// Returns an exit code: the same on all ranks, as is an error, whichever of them it came from.
int load_together(Mailbox& mailbox, int rank, int ranks, std::string const& checkpoint) try {
  auto const world = rankslice::make_communicator(
      {.rank = rank,
       .size = ranks,
       .kind = "mailbox",
       .start_send =
           [&, rank](auto bytes, int to, int tag) {
             mailbox.send(rank, to, tag, bytes);
             return rankslice::WaitFunction();  // the mailbox has a copy: there is nothing to wait for
           },
       .start_receive =
           [&, rank](auto bytes, int from, int tag) {
             return [&mailbox, rank, bytes, from, tag] { mailbox.receive(from, rank, tag, bytes); };
           }});
  auto const source = rankslice::open_checkpoint(checkpoint, *world);
  auto const state = rankslice::load(source, rankslice::make_mesh(ranks), *world);
  auto const report = rankslice::verify(state, *world);
  report.throw_if_bad();
  if (rank == 0) std::cout << ranks << " ranks hold " << report.tensors << " tensors\n";
  return 0;
} catch (rankslice::Error const& error) {
  if (rank == 0) std::cerr << "rank " << error.rank << ": " << error.what() << '\n';
  return static_cast<int>(error.code);
}

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: rank_threads CHECKPOINT RANKS\n";
    return 2;
  }
  auto const ranks = std::stoi(argv[2]);
  Mailbox mailbox;
  std::vector<int> codes(static_cast<std::size_t>(ranks));
  {
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < ranks; ++rank) {
      threads.emplace_back(
          [&, rank] { codes[static_cast<std::size_t>(rank)] = load_together(mailbox, rank, ranks, argv[1]); });
    }
  }
  return *std::max_element(codes.begin(), codes.end());
}

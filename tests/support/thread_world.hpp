#pragma once

#include <chrono>
#include <exception>
#include <functional>
#include <string>
#include <vector>

#include "rankslice/callbacks.hpp"

namespace rankslice::test {

/// What the functions of a test world's group are.
enum class Offers {
  everything,
  messages,     ///< Only `start_send` and `start_receive`.
  collectives,  ///< Only `all_reduce`, `broadcast` and `split`.
};

struct ThreadWorld {
  Offers offers = Offers::everything;
  std::chrono::milliseconds timeout = std::chrono::seconds(20);  ///< Of each wait for another rank.
  std::vector<std::string> hosts = {};                           ///< By rank; empty: all on this machine.
  /// Changes a rank's functions before the communicator is made of them.
  std::function<void(Collectives&)> change = {};
};

/// Runs `rank_main` on `ranks` threads of this process, each with its communicator (kind "threads"), which is made of
/// functions over memory that the threads share. Returns what each rank threw, by rank; null where nothing. Where a
/// rank left, those who wait for it fail at once.
std::vector<std::exception_ptr> exceptions_of_ranks(int ranks, std::function<void(Communicator&)> const& rank_main,
                                                    ThreadWorld const& world = {});

/// The same, and rethrows what was thrown first.
void run_ranks(int ranks, std::function<void(Communicator&)> const& rank_main, ThreadWorld const& world = {});

}  // namespace rankslice::test

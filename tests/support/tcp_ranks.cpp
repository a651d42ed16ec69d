#include "support/tcp_ranks.hpp"

#include <thread>

namespace rankslice::test {

std::vector<std::exception_ptr> exceptions_of(int ranks, RankBody const& body) {
  std::vector<std::exception_ptr> thrown(static_cast<std::size_t>(ranks));
  std::vector<std::jthread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&thrown, &body, rank] {
      try {
        body(rank);
      } catch (...) {
        thrown[static_cast<std::size_t>(rank)] = std::current_exception();
      }
    });
  }
  threads.clear();  // joins
  return thrown;
}

void run_threads(int ranks, RankBody const& body) {
  for (auto const& error : exceptions_of(ranks, body)) {
    if (error) std::rethrow_exception(error);
  }
}

std::string message_of(std::exception_ptr const& error, ExitCode code) {
  if (!error) return "(nothing was thrown)";
  try {
    std::rethrow_exception(error);
  } catch (CommError const& comm_error) {
    if (comm_error.code == code) return comm_error.what();
    return "(a CommError with code " + std::to_string(static_cast<int>(comm_error.code)) + ") " + comm_error.what();
  } catch (std::exception const& other) {
    return std::string("(not a CommError) ") + other.what();
  }
}

}  // namespace rankslice::test

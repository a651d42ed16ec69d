#pragma once

#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "rankslice/communicator.hpp"

namespace rankslice::test {

/// What a rank does, given its number; it makes its communicator itself.
using RankBody = std::function<void(int rank)>;

/// Runs each body on a thread of its own, and returns what it threw, null where nothing.
[[nodiscard]] std::vector<std::exception_ptr> exceptions_of(int ranks, RankBody const& body);
/// The same, and rethrows the first.
void run_threads(int ranks, RankBody const& body);

/// The message of a CommError with `code`; something that no message is where `error` is none.
[[nodiscard]] std::string message_of(std::exception_ptr const& error, ExitCode code);

}  // namespace rankslice::test

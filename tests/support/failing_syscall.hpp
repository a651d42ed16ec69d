#pragma once

#include <functional>
#include <optional>
#include <string>

namespace rankslice::test {

/// Run `body` in a child process in which the system call `number` (`SYS_…`) fails with `error`, without being made.
/// Returns "done" or, for an Error, its exit code and message ("74 /x/y: fsync failed: …"); nothing where the system
/// does not let a process filter its calls, and the test is to be skipped.
[[nodiscard]] std::optional<std::string> outcome_with_failing(long number, int error,
                                                              std::function<void()> const& body);

/// The same in a child process of a user who owns nothing and has no capabilities; nothing where this process is not
/// root's.
[[nodiscard]] std::optional<std::string> outcome_as_nobody(std::function<void()> const& body);

}  // namespace rankslice::test

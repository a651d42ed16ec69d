#include "cli/python_process.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <fstream>

#include "rankslice/error.hpp"

#include "io/positional.hpp"

namespace rankslice::cli {

namespace {

constexpr auto kPatienceMs = 50;  // between two looks at whether all is well

/// Of ours all but what makes a process a rank: a library that calls MPI_Init would be a second one of the same number.
std::vector<char*> environment_of_no_rank() {
  constexpr std::array<std::string_view, 4> kOfRanks{"OMPI_", "PMIX_", "PMI_", "PRTE_"};
  std::vector<char*> kept;
  for (auto** variable = environ; *variable != nullptr; ++variable) {
    auto const is_of_rank = [&](std::string_view prefix) { return std::string_view(*variable).starts_with(prefix); };
    if (std::ranges::none_of(kOfRanks, is_of_rank)) kept.push_back(*variable);
  }
  kept.push_back(nullptr);
  return kept;
}

/// A new process leads a group, so that it ends with all that it has started.
class OwnGroup {
 public:
  OwnGroup() {
    ::posix_spawnattr_init(&attributes_);
    ::posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETPGROUP);
    ::posix_spawnattr_setpgroup(&attributes_, 0);
  }
  ~OwnGroup() { ::posix_spawnattr_destroy(&attributes_); }
  OwnGroup(OwnGroup const&) = delete;
  OwnGroup& operator=(OwnGroup const&) = delete;

  [[nodiscard]] ::posix_spawnattr_t const* get() const { return &attributes_; }

 private:
  ::posix_spawnattr_t attributes_{};
};

/// What a new process finds as its standard streams.
class Streams {
 public:
  Streams(int talk, std::string const& errors) {
    ::posix_spawn_file_actions_init(&actions_);
    ::posix_spawn_file_actions_adddup2(&actions_, talk, STDIN_FILENO);
    ::posix_spawn_file_actions_adddup2(&actions_, talk, STDOUT_FILENO);
    ::posix_spawn_file_actions_addopen(&actions_, STDERR_FILENO, errors.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  }
  ~Streams() { ::posix_spawn_file_actions_destroy(&actions_); }
  Streams(Streams const&) = delete;
  Streams& operator=(Streams const&) = delete;

  [[nodiscard]] ::posix_spawn_file_actions_t const* get() const { return &actions_; }

 private:
  ::posix_spawn_file_actions_t actions_{};
};

}  // namespace

PythonProcess::PythonProcess(std::string const& python, std::vector<std::string> arguments, std::string errors,
                             std::chrono::milliseconds patience)
    : python_(python), errors_(std::move(errors)), patience_(patience) {
  std::array<int, 2> ends{-1, -1};  // a socket: writing to one that has ended is an error, and no signal
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) {
    throw IoError(ExitCode::io, "socketpair failed: " + reason(errno), python);
  }
  talk_ = UniqueFd(ends[0]);
  UniqueFd const theirs(ends[1]);
  std::vector<char*> words{python_.data()};
  for (auto& argument : arguments) words.push_back(argument.data());
  words.push_back(nullptr);
  Streams const streams(theirs.get(), errors_);
  OwnGroup const group;
  auto environment = environment_of_no_rank();
  auto const error =
      ::posix_spawnp(&pid_, python_.c_str(), streams.get(), group.get(), words.data(), environment.data());
  if (error == 0) return;
  pid_ = -1;
  throw IoError(ExitCode::input_missing, fmt::format("{}: cannot be started: {}", python_, reason(error)), python_);
}

void PythonProcess::end() {
  if (pid_ < 0) return;
  ::kill(-pid_, SIGKILL);
  while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) continue;
  pid_ = -1;
}

void PythonProcess::tell(std::string_view line) {
  if (::send(talk_.get(), line.data(), line.size(), MSG_NOSIGNAL) == static_cast<::ssize_t>(line.size())) return;
  throw IoError(ExitCode::io, fmt::format("{}: has ended: {}", python_, last_error()), python_);
}

std::string PythonProcess::line(std::function<void()> const& alive) {
  auto const deadline = std::chrono::steady_clock::now() + patience_;
  for (std::array<char, 4096> bytes{};;) {
    if (auto const end = unread_.find('\n'); end != std::string::npos) {
      auto line = unread_.substr(0, end);
      unread_.erase(0, end + 1);
      return line;
    }
    ::pollfd ready{.fd = talk_.get(), .events = POLLIN, .revents = 0};
    alive();
    if (std::chrono::steady_clock::now() > deadline) {
      auto const seconds = std::chrono::duration<double>(patience_).count();
      throw IoError(ExitCode::io, fmt::format("{}: says nothing for {} s: {}", python_, seconds, last_error()),
                    python_);
    }
    if (::poll(&ready, 1, kPatienceMs) <= 0) continue;
    auto const got = ::read(talk_.get(), bytes.data(), bytes.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) throw IoError(ExitCode::io, fmt::format("{}: has ended: {}", python_, last_error()), python_);
    unread_.append(bytes.data(), static_cast<std::size_t>(got));
  }
}

std::string PythonProcess::last_error() const {
  std::ifstream file(errors_);
  std::string last;
  for (std::string line; std::getline(file, line);) {
    if (!line.empty()) last = line;
  }
  return last.empty() ? "it says nothing" : last;
}

}  // namespace rankslice::cli

#include "support/failing_syscall.hpp"

#include <fmt/format.h>
#include <grp.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>

#include "rankslice/error.hpp"

namespace rankslice::test {

namespace {

bool make_syscall_fail(long number, int error) {
  std::array filter{
      ::sock_filter BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(::seccomp_data, nr)),
      ::sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<std::uint32_t>(number), 0, 1),
      ::sock_filter BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<std::uint32_t>(error)),
      ::sock_filter BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  ::sock_fprog program{.len = filter.size(), .filter = filter.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

bool become_nobody() {
  constexpr unsigned kNobody = 65534;
  return ::setgroups(0, nullptr) == 0 && ::setresgid(kNobody, kNobody, kNobody) == 0 &&
         ::setresuid(kNobody, kNobody, kNobody) == 0;
}

std::string outcome(std::function<void()> const& body) {
  try {
    body();
    return "done";
  } catch (Error const& error) {
    return fmt::format("{} {}", static_cast<int>(error.code), error.what());
  } catch (std::exception const& error) {
    return fmt::format("not an Error: {}", error.what());
  }
}

std::string read_to_end(int fd) {
  std::string text;
  std::array<char, 4096> part{};
  for (auto got = ::read(fd, part.data(), part.size()); got > 0; got = ::read(fd, part.data(), part.size())) {
    text.append(part.data(), static_cast<std::size_t>(got));
  }
  return text;
}

/// In a child process that was made what the body needs; nothing where that failed.
std::optional<std::string> outcome_in_child(std::function<bool()> const& prepare, std::function<void()> const& body) {
  std::array<int, 2> channel{};
  if (::pipe(channel.data()) != 0) return std::nullopt;
  auto const child = ::fork();
  if (child == 0) {
    auto const text = prepare() ? outcome(body) : std::string();
    auto const put = ::write(channel[1], text.data(), text.size());
    std::_Exit(put == static_cast<::ssize_t>(text.size()) ? 0 : 1);
  }
  ::close(channel[1]);
  auto text = read_to_end(channel[0]);
  ::close(channel[0]);
  ::waitpid(child, nullptr, 0);
  if (text.empty()) return std::nullopt;
  return text;
}

}  // namespace

std::optional<std::string> outcome_with_failing(long number, int error, std::function<void()> const& body) {
  return outcome_in_child([&] { return make_syscall_fail(number, error); }, body);
}

std::optional<std::string> outcome_as_nobody(std::function<void()> const& body) {
  return outcome_in_child(become_nobody, body);
}

}  // namespace rankslice::test

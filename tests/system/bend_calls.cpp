// bend_calls WHAT NUMBER FOLDER PROGRAM…: runs a program whose reads from and writes to files below FOLDER, or what it
// sends after the first of them, are not what they should be.
//   short N  every read and write moves at most N bytes
//   exit N   instead of the Nth one the program leaves with exit code 3
//   flip N   the Nth large message to another process leaves with one bit flipped
#include <fmt/format.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

namespace {

struct Bend {
  std::string what;
  std::uint64_t number = 0;
  std::string folder;
  std::uint64_t messages = 0;
  pid_t flipper = 0;          // the thread that sends what was flipped
  std::uint64_t flipped = 0;  // where, until it is on its way
};

/// What a file descriptor of a process is: a path, or "socket:[…]".
std::string name_of(pid_t process, std::uint64_t fd) {
  std::error_code gone;
  return std::filesystem::read_symlink(fmt::format("/proc/{}/fd/{}", process, fd), gone).string();
}

/// A word of the memory of a thread.
std::uint64_t peek(pid_t thread, std::uint64_t address) {
  return static_cast<std::uint64_t>(ptrace(PTRACE_PEEKDATA, thread, address, nullptr));
}

/// Flips a bit of the word there; twice is never.
void flip(pid_t thread, std::uint64_t address) { ptrace(PTRACE_POKEDATA, thread, address, peek(thread, address) ^ 4U); }

/// Where in a large message a bit can be flipped that is the sender's: in the middle of its last part.
std::uint64_t place_in_message(pid_t thread, user_regs_struct const& registers) {
  constexpr std::uint64_t kLarge = 400;  // more than any sign of life
  if (registers.orig_rax != SYS_writev || registers.rdx == 0) return 0;
  if (!name_of(thread, registers.rdi).starts_with("socket:")) return 0;
  auto const last = registers.rsi + (registers.rdx - 1) * 16;  // an iovec: address, length
  auto const length = peek(thread, last + 8);
  return length > kLarge ? peek(thread, last) + length / 2 : 0;
}

/// A system call that is about to be made.
void bend_call(Bend& bend, pid_t thread, std::uint64_t& calls) {
  user_regs_struct registers{};
  ptrace(PTRACE_GETREGS, thread, nullptr, &registers);
  if (bend.what == "flip" && calls > 0) {
    auto const place = place_in_message(thread, registers);
    if (place != 0 && ++bend.messages == bend.number) flip(bend.flipper = thread, bend.flipped = place);
  }
  if (registers.orig_rax != SYS_pread64 && registers.orig_rax != SYS_pwrite64) return;
  if (!name_of(thread, registers.rdi).starts_with(bend.folder)) return;
  ++calls;
  if (bend.what == "short" && registers.rdx > bend.number) {
    registers.rdx = bend.number;
  } else if (bend.what == "exit" && calls == bend.number) {
    registers.orig_rax = SYS_exit_group;
    registers.rdi = 3;
  }
  ptrace(PTRACE_SETREGS, thread, nullptr, &registers);
}

bool is_entry(pid_t thread) {
  __ptrace_syscall_info info{};
  ptrace(static_cast<__ptrace_request>(PTRACE_GET_SYSCALL_INFO), thread, sizeof info, &info);
  return info.op == PTRACE_SYSCALL_INFO_ENTRY;
}

/// Follows all threads of the program to its end. Returns its wait status.
int follow(Bend& bend, pid_t program) {
  std::set<pid_t> known{program};
  std::uint64_t calls = 0;
  int status = 0, ended = 0;
  for (pid_t thread = 0; (thread = waitpid(-1, &status, __WALL)) > 0;) {
    if (!WIFSTOPPED(status)) {
      if (thread == program) ended = status;
      continue;
    }
    auto signal = WSTOPSIG(status);
    auto const is_new = known.insert(thread).second;
    if (signal == (SIGTRAP | 0x80)) {
      if (is_entry(thread)) {
        bend_call(bend, thread, calls);
      } else if (thread == bend.flipper && bend.flipped != 0) {
        flip(thread, std::exchange(bend.flipped, 0));  // the sender still has what it had
      }
      signal = 0;
    } else if (signal == SIGTRAP || (is_new && signal == SIGSTOP)) {
      signal = 0;  // an event of the tracing, not of the program
    }
    ptrace(PTRACE_SYSCALL, thread, nullptr, signal);
  }
  return ended;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) return 2;
  Bend bend{.what = argv[1], .number = std::stoull(argv[2]), .folder = argv[3]};

  auto const program = fork();
  if (program == 0) {
    ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
    raise(SIGSTOP);
    execvp(argv[4], argv + 4);
    std::_Exit(127);
  }
  int status = 0;
  waitpid(program, &status, 0);
  ptrace(PTRACE_SETOPTIONS, program, nullptr,
         PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL);
  ptrace(PTRACE_SYSCALL, program, nullptr, 0);
  status = follow(bend, program);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

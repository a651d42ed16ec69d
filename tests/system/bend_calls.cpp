// bend_calls WHAT NUMBER FOLDER PROGRAM…: runs a program whose reads from and writes to files below FOLDER are not what
// they should be.
//   short N  every read and write moves at most N bytes
//   exit N   instead of the Nth one the program leaves with exit code 3
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

namespace {

struct Bend {
  std::string what;
  std::uint64_t number = 0;
  std::string folder;
};

/// The path that a file descriptor of a process is of.
std::string name_of(pid_t process, std::uint64_t fd) {
  std::error_code gone;
  return std::filesystem::read_symlink(fmt::format("/proc/{}/fd/{}", process, fd), gone).string();
}

/// A system call that is about to be made.
void bend_call(Bend const& bend, pid_t thread, std::uint64_t& calls) {
  user_regs_struct registers{};
  ptrace(PTRACE_GETREGS, thread, nullptr, &registers);
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
int follow(Bend const& bend, pid_t program) {
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
      if (is_entry(thread)) bend_call(bend, thread, calls);
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
  Bend const bend{.what = argv[1], .number = std::stoull(argv[2]), .folder = argv[3]};

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

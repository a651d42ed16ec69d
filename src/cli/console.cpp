#include "cli/console.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "rankslice/error.hpp"

#include "facts/words.hpp"

namespace rankslice::cli {

namespace {

constexpr auto kBarInterval = std::chrono::milliseconds(100);
constexpr auto kLineInterval = std::chrono::seconds(5);
constexpr int kBarWidth = 30;

/// Talking is not the job: a stderr that is full or closed does not end it.
void write(std::string const& text) noexcept {
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

}  // namespace

void print_data(std::string const& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0) return;
  throw IoError(ExitCode::io, fmt::format("stdout: {}", std::strerror(errno)), "stdout");
}

Console::Console(Options const& options, bool speaks)
    : speaks_(speaks), quiet_(options.quiet), json_(options.log_format == "json"), verbose_(options.verbose) {
  progress_ = speaks && (options.progress == "on" || (options.progress == "auto" && !quiet_));
  bar_ = progress_ && !json_ && ::isatty(STDERR_FILENO) == 1;
}

void Console::say(std::string const& line) {
  if (speaks_ && !quiet_) print("info", line);
}

void Console::detail(std::string const& line) {
  if (speaks_ && verbose_ > 0) print("debug", line);
}

void Console::warn(std::string const& line) {
  if (speaks_ && !quiet_) print("warning", line);
}

void Console::error(std::string const& line) { print("error", line); }

void Console::print(std::string_view level, std::string const& line) {
  clear_bar();
  if (json_) {
    nlohmann::json const entry{{"level", level}, {"message", line}};
    write(entry.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  } else {
    auto const marked = level == "error" || level == "warning";
    write(fmt::format("rankslice: {}{}\n", marked ? fmt::format("{}: ", level) : "", line));
  }
}

void Console::progress(Progress const& progress) {
  if (!progress_ || progress.total == 0) return;
  auto const now = std::chrono::steady_clock::now();
  auto const finished = progress.done >= progress.total;
  if (now - last_ < (bar_ ? std::chrono::nanoseconds(kBarInterval) : std::chrono::nanoseconds(kLineInterval)) &&
      !(finished && bar_)) {
    return;
  }
  last_ = now;
  auto const share = std::min(1.0, static_cast<double>(progress.done) / static_cast<double>(progress.total));
  auto const text = fmt::format("{:8} {:5.1f} %  {} of {} on this rank", progress.phase, 100 * share,
                                human_bytes(progress.done), human_bytes(progress.total));
  if (!bar_) return print("info", text);
  auto const filled = static_cast<int>(share * kBarWidth);
  write(fmt::format("\r\033[K[{:#<{}}{:.<{}}] {}", "", filled, "", kBarWidth - filled, text));
  bar_shown_ = true;
}

void Console::clear_bar() {
  if (!bar_shown_) return;
  write("\r\033[K");
  bar_shown_ = false;
}

}  // namespace rankslice::cli

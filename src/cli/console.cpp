#include "cli/console.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "rankslice/error.hpp"

#include "core/host_name.hpp"

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

/// "2026-01-31T12:00:00.123Z"
std::string utc_now() {
  auto const now = std::chrono::system_clock::now();
  auto const since_second = now.time_since_epoch() % std::chrono::seconds(1);
  return fmt::format("{:%FT%T}.{:03}Z", fmt::gmtime(std::chrono::system_clock::to_time_t(now)),
                     std::chrono::duration_cast<std::chrono::milliseconds>(since_second).count());
}

std::string json_line(Json const& entry) { return entry.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n"; }

}  // namespace

void print_data(std::string const& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0) return;
  throw IoError(ExitCode::io, fmt::format("stdout: {}", std::strerror(errno)), "stdout");
}

bool asks_for_json_log(int argc, char const* const* argv) {
  auto const* const variable = std::getenv("RANKSLICE_LOG_FORMAT");
  std::string_view format = variable == nullptr ? "" : variable;
  constexpr std::string_view kOption = "--log-format";
  for (int i = 1; i < argc; ++i) {
    std::string_view const word(argv[i]);
    if (word == kOption && i + 1 < argc) format = argv[i + 1];
    if (word.starts_with(kOption) && word.substr(kOption.size()).starts_with('=')) {
      format = word.substr(kOption.size() + 1);
    }
  }
  return format == "json";
}

Console::Console(bool json, int rank) : json_(json), rank_(rank), host_(host_name()) {}

void Console::set_options(Options const& options) {
  json_ = options.log_format == "json";
  quiet_ = options.quiet;
  verbose_ = options.verbose;
  progress_ = options.progress == "on" || (options.progress == "auto" && !quiet_);
  bar_ = !json_ && ::isatty(STDERR_FILENO) == 1;
  rank_ = options.rank.value_or(rank_);
}

void Console::join(Communicator const& world) {
  speaks_ = world.rank() == 0;
  if (world.size() > 1) rank_ = world.rank();
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

std::string Console::error_line(std::string_view message, bool known_now) const {
  return json_ ? json_line(describe("error", message, known_now)) : fmt::format("rankslice: error: {}\n", message);
}

Json Console::describe(std::string_view level, std::string_view message, bool known_now) const {
  Json entry = Json::object();
  if (known_now) entry["time"] = utc_now();
  entry["level"] = level;
  entry["rank"] = rank_;
  entry["host"] = host_;
  if (known_now && !phase_.empty()) entry["phase"] = phase_;
  entry["message"] = message;
  return entry;
}

void Console::print(std::string_view level, std::string const& line) {
  clear_bar();
  if (json_) return write(json_line(describe(level, line, true)));
  auto const marked = level == "error" || level == "warning";
  write(fmt::format("rankslice: {}{}\n", marked ? fmt::format("{}: ", level) : "", line));
}

void Console::progress(Progress const& progress) {
  if (!speaks_ || !progress_ || progress.total == 0) return;
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
  if (json_) return write_progress(text, progress);
  if (!bar_) return print("info", text);
  auto const filled = static_cast<int>(share * kBarWidth);
  write(fmt::format("\r\033[K[{:#<{}}{:.<{}}] {}", "", filled, "", kBarWidth - filled, text));
  bar_shown_ = true;
}

void Console::write_progress(std::string const& text, Progress const& progress) {
  auto entry = describe("info", text, true);
  entry["done_bytes"] = progress.done;
  entry["total_bytes"] = progress.total;
  write(json_line(entry));
}

void Console::clear_bar() {
  if (!bar_shown_) return;
  write("\r\033[K");
  bar_shown_ = false;
}

}  // namespace rankslice::cli

#include "cli/bench_command.hpp"

#include <fmt/format.h>

#include <filesystem>

namespace rankslice::cli {

namespace {

std::string as_word(std::string const& text) {
  constexpr auto kPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=+:,./@%";
  if (!text.empty() && text.find_first_not_of(kPlain) == std::string::npos) return text;
  std::string quoted;
  for (auto const letter : text) {
    if (letter == '\'') quoted += "'\\'";
    quoted += letter;
  }
  return fmt::format("'{}'", quoted);
}

std::string last_part(std::string const& path) {
  auto const normal = std::filesystem::path(path).lexically_normal();
  return (normal.has_filename() ? normal : normal.parent_path()).filename().string();
}

class CommandLine {
 public:
  explicit CommandLine(std::string text) : text_(std::move(text)) {}

  CommandLine& word(std::string const& text) {
    text_ += fmt::format(" {}", as_word(text));
    return *this;
  }
  CommandLine& flag(char const* name, bool given) { return given ? word(name) : *this; }
  CommandLine& option(char const* name, std::string const& value, std::string const& usual = {}) {
    return value == usual ? *this : word(name).word(value);
  }
  CommandLine& option(char const* name, int value, int usual) {
    return option(name, std::to_string(value), std::to_string(usual));
  }
  [[nodiscard]] std::string const& text() const { return text_; }

 private:
  std::string text_;
};

}  // namespace

std::string bench_command(Options const& o, int ranks) {
  Options const usual;
  CommandLine line(fmt::format("mpirun -n {} rankslice bench", ranks));
  if (!o.input.empty()) line.word(last_part(o.input));
  line.option("--preset", o.preset)
      .option("--family", o.family, usual.family)
      .option("--expert-layout", o.expert_layout, usual.expert_layout)
      .option("--dtype", o.dtype, usual.dtype)
      .flag("--text-only", o.text_only)
      .option("--steps", fmt::format("{}", fmt::join(o.steps, ",")))
      .flag("--cold", o.cold)
      .option("--repeats", o.repeats, usual.repeats)
      .option("--ep", o.ep, usual.ep)
      .option("--ep-shard", o.ep_shard, usual.ep_shard)
      .option("--threads", o.threads, usual.threads)
      .option("--io", o.io, usual.io)
      .option("--cache", o.cache, usual.cache)
      .option("--hugepages", o.hugepages, usual.hugepages)
      .option("--scratch", last_part(o.scratch))
      .option("--compare", last_part(o.compare))
      .option("--chart", last_part(o.chart));
  return line.text();
}

}  // namespace rankslice::cli

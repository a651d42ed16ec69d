#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <string>
#include <string_view>
#include <utility>

#include "rankslice/error.hpp"

#include "cli/command_definitions.hpp"
#include "cli/commands.hpp"
#include "cli/described_options.hpp"
#include "cli/version.hpp"

namespace rankslice::cli {

namespace {

constexpr std::array<std::pair<ExitCode, std::string_view>, 13> kExitCodes{{
    {ExitCode::done, "done"},
    {ExitCode::unexpected, "unexpected: a bug"},
    {ExitCode::usage, "wrong usage"},
    {ExitCode::difference, "verification found a difference"},
    {ExitCode::bad_data, "bad checkpoint data"},
    {ExitCode::input_missing, "input missing"},
    {ExitCode::unavailable, "a GPU or NCCL was asked for and is not to be had"},
    {ExitCode::cannot_create, "output cannot be created"},
    {ExitCode::io, "I/O error"},
    {ExitCode::timeout, "a rank did not answer in time"},
    {ExitCode::bad_launch, "the ranks were not started as one job"},
    {ExitCode::interrupted, "stopped by SIGINT"},
    {ExitCode::terminated, "stopped by SIGTERM"},
}};

/// Text as roff has it: no line of it is a request, and what looks like a minus is one.
std::string roff(std::string_view text) {
  std::string out;
  auto at_line_begin = true;
  for (auto const c : text) {
    if (at_line_begin && (c == '.' || c == '\'')) out += "\\&";
    at_line_begin = c == '\n';
    if (c == '\\') {
      out += "\\e";
    } else if (c == '-') {
      out += "\\-";
    } else {
      out += c;
    }
  }
  return out;
}

std::string bold(std::string_view text) { return fmt::format("\\fB{}\\fR", roff(text)); }
std::string italic(std::string_view text) { return fmt::format("\\fI{}\\fR", roff(text)); }

std::string value_of(DescribedOption const& option) {
  if (option.value.empty()) return {};
  auto const value = option.choices.empty()
                         ? italic(option.value)
                         : roff(fmt::format("{}", fmt::join(option.choices, option.is_list ? "," : "|")));
  return option.may_lack_value ? fmt::format(" [{}]", value) : " " + value;
}

std::string describe(DescribedOption const& option) {
  std::string names;
  for (auto const& name : option.names) names += (names.empty() ? "" : ", ") + bold(name);
  auto text =
      fmt::format(".TP\n{}{}\n{}", names, names.empty() ? italic(option.value) : value_of(option), roff(option.help));
  if (!option.initial.empty()) text += fmt::format(" [{}]", roff(option.initial));
  return text + "\n";
}

std::string verbatim(std::string_view text) { return fmt::format(".PP\n.nf\n{}\n.fi\n", roff(text)); }

std::string describe(DescribedCommand const& command) {
  std::string heading = command.name;
  for (auto const& positional : command.positionals) heading += " " + positional.value;
  auto text = fmt::format(".SS \"{}\"\n{}\n", roff(heading), roff(command.help));
  for (auto const& option : command.positionals) text += describe(option);
  for (auto const& option : command.options) text += describe(option);
  return command.examples.empty() ? text : text + verbatim(command.examples);
}

std::string manual_page(CLI::App const& app) {
  auto text = fmt::format(
      ".\\\" Made by `rankslice man`.\n.TH RANKSLICE 1 \"\" \"rankslice {}\" \"User Commands\"\n"
      ".SH NAME\nrankslice \\- distributed loading of Mixture\\-of\\-Experts checkpoints\n"
      ".SH SYNOPSIS\n.B rankslice\n.I COMMAND\n[\\fIoptions\\fR]\n.br\n"
      ".B mpirun \\-n\n.I N\n.B rankslice\n.I COMMAND\n[\\fIoptions\\fR]\n"
      ".SH DESCRIPTION\n{}\n{}.SH COMMANDS\n",
      kVersion, roff(app.get_description()), verbatim(app.get_footer()));
  for (auto const& command : described_commands(app)) text += describe(command);
  text += ".SH EXIT STATUS\n";
  for (auto const& [code, meaning] : kExitCodes) {
    text += fmt::format(".TP\n.B {}\n{}\n", static_cast<int>(code), roff(meaning));
  }
  return text + ".SH SEE ALSO\n.BR mpirun (1),\n.BR srun (1)\n";
}

}  // namespace

void man(Job& job) {
  CLI::App app;
  std::map<std::string, Options> unused;
  define_commands(app, unused);
  job.listed = true;
  print_data(manual_page(app));
}

}  // namespace rankslice::cli

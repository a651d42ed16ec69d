#include "cli/options.hpp"

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <iostream>
#include <map>

#include "rankslice/error.hpp"

#include "cli/command_definitions.hpp"

namespace rankslice::cli {

namespace {

void refuse(bool asked, std::string const& what) {
  if (asked) throw UsageError(what + ": not in this version");
}

/// Options that are promised for later: asking for them is no typing error either.
void refuse_later_options(int argc, char** argv) {
  for (int i = 2; i < argc; ++i) {
    std::string_view const word(argv[i]);
    auto const name = word.substr(0, word.find('='));
    for (auto const* later :
         {"--io", "--cache", "--threads", "--compare", "--master-port", "--max-bandwidth", "--grace", "--side-files"}) {
      refuse(name == later, std::string(name));
    }
  }
}

/// The parser reads the environment for all commands, called or not, and an option of one name may take other values in
/// another command.
void forget_environment_of_others(CLI::App& app, std::string_view called) {
  for (auto* const command : app.get_subcommands({})) {
    if (command->get_name() == called) continue;
    for (auto* const option : command->get_options()) option->envname("");
  }
}

/// The parser itself says of a word that is no command only that a command is required.
void check_command_name(CLI::App const& app, int argc, char** argv) {
  if (argc < 2 || argv[1][0] == '-') return;
  std::string const word = argv[1];
  // Names that are promised for later: asking for them is no typing error.
  for (auto const* reserved : {"serve", "ctl"}) refuse(word == reserved, word);
  std::string known;
  for (auto const* const command : app.get_subcommands({})) {
    if (command->get_name() == word) return;
    known += (known.empty() ? "" : ", ") + command->get_name();
  }
  throw UsageError(fmt::format("{}: no such command; there are {}", word, known));
}

}  // namespace

std::optional<Options> parse_options(int argc, char** argv) {
  std::map<std::string, Options> of_command;
  CLI::App app;
  define_commands(app, of_command);
  check_command_name(app, argc, argv);
  if (argc > 1) forget_environment_of_others(app, argv[1]);
  try {
    app.parse(argc, argv);
  } catch (CLI::Success const& done) {  // --help, --version
    app.exit(done, std::cout, std::cerr);
    return std::nullopt;
  } catch (CLI::ExtrasError const& error) {
    refuse_later_options(argc, argv);
    throw UsageError(fmt::format("{}\nTry: rankslice {} --help", error.what(), argv[1]));
  } catch (CLI::ParseError const& error) {
    throw UsageError(fmt::format("{}\nTry: rankslice {}--help", error.what(),
                                 argc > 1 && argv[1][0] != '-' ? argv[1] + std::string(" ") : ""));
  }
  auto const command = app.get_subcommands().front()->get_name();
  auto& options = of_command.at(command);
  options.command = command;
  return options;
}

}  // namespace rankslice::cli

#pragma once

#include <CLI/CLI.hpp>

#include <string>
#include <vector>

namespace rankslice::cli {

/// What the pages and scripts made of the parser's definitions need of an option.
struct DescribedOption {
  std::vector<std::string> names;    ///< "-q", "--quiet"; empty for a positional
  std::string value;                 ///< "FILE", or for a positional its name; empty for a flag
  std::vector<std::string> choices;  ///< What the value is one of; empty: anything
  bool is_list = false;              ///< Some of `choices`, with commas between them.
  bool may_lack_value = false;
  std::string initial;  ///< Its value when it is not given, where that says something.
  std::string help;
};

struct DescribedCommand {
  std::string name;
  std::string help;
  std::string examples;
  std::vector<DescribedOption> positionals, options;
};

/// All commands, as the parser knows them.
[[nodiscard]] std::vector<DescribedCommand> described_commands(CLI::App const& app);

}  // namespace rankslice::cli

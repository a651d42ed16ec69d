#pragma once

#include <CLI/CLI.hpp>

#include <map>
#include <string>

#include "cli/options.hpp"

namespace rankslice::cli {

/// Tell the parser every command there is. Each has options of its own, with defaults of its own, and leaves what it is
/// told in `of_command`, which outlives `app`.
void define_commands(CLI::App& app, std::map<std::string, Options>& of_command);

}  // namespace rankslice::cli

#pragma once

#include <CLI/CLI.hpp>

#include <cstdint>
#include <string>
#include <string_view>

#include "cli/options.hpp"

namespace rankslice::cli {

/// Put the `RANKSLICE_…` variable behind an option: of `--save-shards`, RANKSLICE_SAVE_SHARDS.
CLI::Option* with_environment(CLI::Option* option);

template <typename T>
CLI::Option* option(CLI::App& app, std::string const& flags, T& value, std::string const& help) {
  return with_environment(app.add_option(flags, value, help));
}

CLI::Option* flag(CLI::App& app, std::string const& flags, bool& value, std::string const& help);

/// A number in digits, from `least` on: the parser by itself takes -1 for 2^64 - 1.
CLI::Validator whole_number(std::uint64_t least, std::uint64_t most);

constexpr std::uint64_t kMostRanks = 1U << 20;
constexpr std::uint64_t kMostThreads = 1024;

// Options that several commands have. `keys_of`: whose keys --include and --exclude speak of.

void add_input(CLI::App& app, Options& o, std::string const& name, std::string const& help);
void add_output_options(CLI::App& app, Options& o);
void add_model_options(CLI::App& app, Options& o);
void add_selection_options(CLI::App& app, Options& o, std::string_view keys_of = "source");
void add_rank_options(CLI::App& app, Options& o);
/// How files are read, and by how many threads.
void add_reading_options(CLI::App& app, Options& o);
void add_huge_pages_option(CLI::App& app, Options& o);
void add_mesh_options(CLI::App& app, Options& o);
void add_dense_option(CLI::App& app, Options& o, std::string const& what_auto_is);
void add_manifest_option(CLI::App& app, Options& o);
/// What every command has that ranks share: the model, the selection, the ranks, what is proved, the outputs.
void add_job_options(CLI::App& app, Options& o, std::string_view keys_of = "source");

}  // namespace rankslice::cli

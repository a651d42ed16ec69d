#include "cli/described_options.hpp"

#include <string_view>

namespace rankslice::cli {

namespace {

/// The parser has them only in the name of the type: "TEXT:{auto,cpu,cuda}".
std::vector<std::string> choices_of(std::string_view type) {
  auto const begin = type.find('{');
  auto const end = type.find('}');
  if (begin == std::string_view::npos || end == std::string_view::npos) return {};
  std::vector<std::string> choices;
  for (auto rest = type.substr(begin + 1, end - begin - 1); !rest.empty();) {
    auto const comma = rest.find(',');
    choices.emplace_back(rest.substr(0, comma));
    rest.remove_prefix(comma == std::string_view::npos ? rest.size() : comma + 1);
  }
  return choices;
}

DescribedOption describe(CLI::Option const& option) {
  DescribedOption described{.names = {},
                            .value = {},
                            .choices = choices_of(option.get_type_name()),
                            .initial = {},
                            .help = option.get_description()};
  if (option.get_positional()) {
    described.value = option.get_single_name();
    return described;
  }
  for (auto const& name : option.get_snames()) described.names.push_back("-" + name);
  for (auto const& name : option.get_lnames()) described.names.push_back("--" + name);
  if (option.get_expected_max() == 0) return described;  // a flag
  auto const type = option.get_type_name();
  described.value = type.substr(0, type.find(':'));
  described.may_lack_value = option.get_expected_min() == 0;
  described.is_list = option.get_delimiter() != '\0';
  described.initial = option.get_default_str();
  return described;
}

}  // namespace

std::vector<DescribedCommand> described_commands(CLI::App const& app) {
  std::vector<DescribedCommand> commands;
  for (auto const* const sub : app.get_subcommands({})) {
    DescribedCommand command{.name = sub->get_name(),
                             .help = sub->get_description(),
                             .examples = sub->get_footer(),
                             .positionals = {},
                             .options = {}};
    for (auto const* const option : sub->get_options()) {
      (option->get_positional() ? command.positionals : command.options).push_back(describe(*option));
    }
    commands.push_back(std::move(command));
  }
  return commands;
}

}  // namespace rankslice::cli

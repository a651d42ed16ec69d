#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <string>
#include <string_view>

#include "cli/command_definitions.hpp"
#include "cli/commands.hpp"
#include "cli/described_options.hpp"

namespace rankslice::cli {

namespace {

constexpr std::string_view kBashBegin = R"(# bash completion for rankslice, made by `rankslice completion bash`
_rankslice_words() { mapfile -t COMPREPLY < <(compgen -W "$1" -- "$2"); }
_rankslice_list() { # some of the words, with commas between them
  local before=
  [[ $2 == *,* ]] && before=${2%,*},
  mapfile -t COMPREPLY < <(compgen -P "$before" -W "$1" -- "${2##*,}")
}
_rankslice_files() {
  compopt -o filenames 2>/dev/null
  mapfile -t COMPREPLY < <(compgen -f -- "${1//\\/}")
}
_rankslice_folders() {
  compopt -o filenames 2>/dev/null
  mapfile -t COMPREPLY < <(compgen -d -- "${1//\\/}")
}
_rankslice() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} options
  COMPREPLY=()
  if [[ $word == = ]]; then
    word=
  elif [[ $before == = ]]; then
    before=${COMP_WORDS[COMP_CWORD - 2]}
  fi
  if ((COMP_CWORD == 1)); then
)";

constexpr std::string_view kBashEnd = R"(    *) return ;;
  esac
  if [[ $word == -* ]]; then
    _rankslice_words "$options" "$word"
  else
    _rankslice_files "$word"
  fi
}
complete -F _rankslice rankslice
)";

std::string words_of(std::vector<std::string> const& words) { return fmt::format("{}", fmt::join(words, " ")); }

std::vector<std::string> names_of(std::vector<DescribedOption> const& options) {
  std::vector<std::string> names;
  for (auto const& option : options) names.insert(names.end(), option.names.begin(), option.names.end());
  return names;
}

/// What completes the value of an option, in bash.
std::string bash_value(DescribedOption const& option) {
  if (!option.choices.empty()) {
    return fmt::format("{} '{}' \"$word\"; ", option.is_list ? "_rankslice_list" : "_rankslice_words",
                       words_of(option.choices));
  }
  if (option.value == "FILE" || option.value == "PATH") return "_rankslice_files \"$word\"; ";
  if (option.value == "DIR") return "_rankslice_folders \"$word\"; ";
  return {};  // a number or a pattern: nobody knows
}

std::string bash_case(DescribedCommand const& command) {
  auto text = fmt::format("    {})\n      options='{}'\n      case $before in\n", command.name,
                          words_of(names_of(command.options)));
  for (auto const& option : command.options) {
    if (option.value.empty()) continue;
    auto const else_as_others = option.may_lack_value ? "[[ $word == -* ]] || { " : "";
    text += fmt::format("        {}) {}{}return{} ;;\n", fmt::join(option.names, " | "), else_as_others,
                        bash_value(option), option.may_lack_value ? "; }" : "");
  }
  text += "      esac\n";
  if (command.positionals.empty()) {
    text += "      [[ $word == -* ]] || return\n";
  } else if (auto const& choices = command.positionals.front().choices; !choices.empty()) {
    text +=
        fmt::format("      [[ $word == -* ]] || {{ _rankslice_words '{}' \"$word\"; return; }}\n", words_of(choices));
  }
  return text + "      ;;\n";
}

std::string bash_script(std::vector<DescribedCommand> const& commands) {
  std::vector<std::string> names{"--help", "--version"};
  for (auto const& command : commands) names.push_back(command.name);
  auto text = std::string(kBashBegin) +
              fmt::format("    _rankslice_words '{}' \"$word\"\n    return\n  fi\n  case ${{COMP_WORDS[1]}} in\n",
                          words_of(names));
  for (auto const& command : commands) text += bash_case(command);
  return text + std::string(kBashEnd);
}

/// As part of a word in single quotes in which colons and brackets mean something.
std::string zsh_text(std::string_view text) {
  std::string out;
  for (auto const c : text.substr(0, text.find('\n'))) {
    if (c == ':' || c == '[' || c == ']' || c == '\\') out += '\\';
    out += c == '\'' ? "'\\''" : std::string(1, c);
  }
  return out;
}

std::string zsh_action(DescribedOption const& option) {
  if (!option.choices.empty()) {
    auto const words = words_of(option.choices);
    return option.is_list ? fmt::format("_values -s , {} {}", option.value, words) : fmt::format("({})", words);
  }
  if (option.value == "DIR") return "_files -/";
  auto const is_file = option.names.empty() || option.value == "FILE" || option.value == "PATH";
  return is_file ? "_files" : " ";
}

std::string zsh_case(DescribedCommand const& command) {
  auto text = fmt::format("    {})\n      _arguments", command.name);
  auto const add = [&](std::string const& spec) { text += fmt::format(" \\\n        '{}'", spec); };
  for (auto const& option : command.options) {
    for (auto const& name : option.names) {
      auto const takes = option.value.empty() ? "" : name.starts_with("--") ? "=" : "+";
      auto const value = option.value.empty() ? ""
                                              : fmt::format("{}{}:{}", option.may_lack_value ? "::" : ":",
                                                            zsh_text(option.value), zsh_action(option));
      add(fmt::format("{}{}[{}]{}", name, takes, zsh_text(option.help), value));
    }
  }
  for (auto const& positional : command.positionals) {
    add(fmt::format("*:{}:{}", zsh_text(positional.value), zsh_action(positional)));
    break;  // one pattern stands for all of them
  }
  return text + "\n      ;;\n";
}

std::string zsh_script(std::vector<DescribedCommand> const& commands) {
  std::string text =
      "#compdef rankslice\n# zsh completion for rankslice, made by `rankslice completion zsh`\n_rankslice() {\n"
      "  if ((CURRENT == 2)); then\n    local -a commands=(";
  for (auto const& command : commands) text += fmt::format("\n      '{}:{}'", command.name, zsh_text(command.help));
  text +=
      "\n    )\n    _describe command commands\n    return\n  fi\n  shift words\n  ((CURRENT--))\n"
      "  case $words[1] in\n";
  for (auto const& command : commands) text += zsh_case(command);
  return text + "  esac\n}\n_rankslice \"$@\"\n";
}

}  // namespace

void completion(Job& job) {
  CLI::App app;
  std::map<std::string, Options> unused;
  define_commands(app, unused);
  job.listed = true;
  auto const commands = described_commands(app);
  print_data(job.options.shell == "zsh" ? zsh_script(commands) : bash_script(commands));
}

}  // namespace rankslice::cli

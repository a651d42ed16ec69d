#include "comm/last_words.hpp"

#include <fmt/format.h>

#include <utility>

namespace rankslice {

namespace {

/// The process has one stderr, and what ends it may be deep in a call of MPI that knows nothing of the program.
LastWords& form_of_process() {
  static LastWords form;
  return form;
}

}  // namespace

void write_last_words_as(LastWords form) { form_of_process() = std::move(form); }

std::string last_words(std::string_view message, bool known_now) {
  auto const& form = form_of_process();
  return form ? form(message, known_now) : fmt::format("rankslice: error: {}\n", message);
}

}  // namespace rankslice

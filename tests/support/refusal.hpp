#pragma once

#include <string>

#include "rankslice/error.hpp"

namespace rankslice::test {

/// What an Error says.
struct Refusal {
  std::string message = "accepted";
  std::string tensor;
  std::string file;
  ExitCode code = ExitCode::done;
};

/// How a call is refused.
template <typename Call>
[[nodiscard]] Refusal refusal_of(Call const& call) {
  try {
    call();
    return {};
  } catch (Error const& error) {
    return {.message = error.what(), .tensor = error.tensor, .file = error.file, .code = error.code};
  }
}

}  // namespace rankslice::test

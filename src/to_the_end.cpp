#include "to_the_end.hpp"

#include <utility>

#include "comm/outcome.hpp"

namespace rankslice {

void ToTheEnd::attempt(std::function<void()> const& step) {
  if (failed_) return;
  try {
    step();
  } catch (...) {
    failed_ = std::current_exception();
  }
}

void ToTheEnd::carry(std::function<void()> const& step) {
  if (broken_) std::rethrow_exception(broken_);
  auto const outcome = outcome_of(step);
  if (outcome.code == ExitCode::done) return;
  try {
    world_.abort(outcome.code, outcome.message);
  } catch (...) {
    broken_ = std::current_exception();
    throw;
  }
}

void ToTheEnd::let_out() const {
  if (failed_) std::rethrow_exception(failed_);
}

}  // namespace rankslice

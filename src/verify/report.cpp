#include <fmt/format.h>

#include <algorithm>

#include "rankslice/verify.hpp"

namespace rankslice {

void VerifyReport::throw_if_bad() const {
  if (ok()) return;
  constexpr std::size_t kNamed = 10;
  auto const found = mismatches.size() + unlisted;
  auto const named = std::min(kNamed, mismatches.size());
  auto message = fmt::format("verification found {} difference{}", found, found == 1 ? "" : "s");
  for (std::size_t i = 0; i < named; ++i) message += "\n  " + mismatches[i].what;
  if (found > named) message += fmt::format("\n  … and {} more", found - named);
  throw VerifyError(message, {}, mismatches.front().tensor);
}

}  // namespace rankslice

#include <fmt/format.h>

#include <algorithm>

#include "rankslice/verify.hpp"

namespace rankslice {

void VerifyReport::throw_if_bad() const {
  if (ok()) return;
  constexpr std::size_t kNamed = 10;
  std::string message =
      fmt::format("verification found {} difference{}", mismatches.size(), mismatches.size() == 1 ? "" : "s");
  for (std::size_t i = 0; i < std::min(kNamed, mismatches.size()); ++i) message += "\n  " + mismatches[i].what;
  if (mismatches.size() > kNamed) message += fmt::format("\n  … and {} more", mismatches.size() - kNamed);
  throw VerifyError(message, {}, mismatches.front().tensor);
}

}  // namespace rankslice

#include <fmt/format.h>

#include "rankslice/verify.hpp"

#include "core/name_first.hpp"

namespace rankslice {

void VerifyReport::throw_if_bad() const {
  if (ok()) return;
  auto const found = mismatches.size() + unlisted;
  auto const message = fmt::format("verification found {} difference{}", found, found == 1 ? "" : "s");
  throw VerifyError(message + name_first(mismatches.size(), found, [&](std::size_t i) { return mismatches[i].what; }),
                    {}, mismatches.front().tensor);
}

}  // namespace rankslice

#include "verify/references.hpp"

#include "verify/compare.hpp"

namespace rankslice {

void compare_with_references(Checkpoint const& source, Digests const& read, VerifyOptions const& options,
                             Communicator& world, std::function<Digests(Digests const&)> const& restrict,
                             VerifyReport& report) {
  auto const compare = [&](std::string_view name, Digests const& reference) {
    report.reference = name;
    if (world.rank() != 0) return;
    auto const expected = restrict ? restrict(reference) : reference;
    auto const found = differences(source.parameters, NamedDigests{name, expected}, {"read", read}, -1);
    report.mismatches.insert(report.mismatches.end(), found.begin(), found.end());
  };
  if (source.digests) compare("store", *source.digests);
  if (options.against == nullptr) return;
  auto const& against = *options.against;
  auto const reference = against.digests ? *against.digests : digest(against, world, options.call);
  std::vector<Mismatch> unmatched;
  auto const ordered = in_order_of(source, against, reference, read, unmatched);
  if (world.rank() == 0) report.mismatches.insert(report.mismatches.end(), unmatched.begin(), unmatched.end());
  compare("against", ordered);
}

}  // namespace rankslice

#include "rankslice/callbacks.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "support/communicator_conformance.hpp"
#include "support/thread_world.hpp"

namespace rankslice {
namespace {

using test::Offers;
using test::ThreadWorld;

Implementation threads(std::string const& name, int ranks, ThreadWorld const& world) {
  return {.name = name + std::to_string(ranks),
          .run = [=](RankMain const& rank_main) { test::run_ranks(ranks, rank_main, world); },
          .sends = world.offers != Offers::collectives};
}

std::vector<Implementation> implementations() {
  std::vector<Implementation> all;
  for (int ranks = 1; ranks <= 4; ++ranks) {
    all.push_back(threads("Everything", ranks, {}));
    all.push_back(threads("Messages", ranks, {.offers = Offers::messages}));
    all.push_back(threads("Collectives", ranks, {.offers = Offers::collectives}));
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Callbacks, CommunicatorConformance, testing::ValuesIn(implementations()),
                         [](auto const& suite) { return suite.param.name; });

}  // namespace
}  // namespace rankslice

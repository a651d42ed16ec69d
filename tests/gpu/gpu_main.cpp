#include <gtest/gtest.h>

#include <cstdio>

#include "rankslice/cuda.hpp"

namespace {
constexpr int skipped = 77;
}

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  auto const gpus = rankslice::visible_gpus();
  if (gpus.count == 0) {
    std::printf("skipped: %s\n", gpus.why_none.c_str());
    return skipped;
  }
  return RUN_ALL_TESTS();
}

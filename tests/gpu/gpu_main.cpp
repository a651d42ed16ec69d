#include <gtest/gtest.h>
#include <torch/cuda.h>

#include <cstdio>

namespace {
constexpr int skipped = 77;
}

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (torch::cuda::device_count() == 0) {
    std::puts("skipped: LibTorch finds no CUDA device");
    return skipped;
  }
  return RUN_ALL_TESTS();
}

#include "rankslice/cuda.hpp"

#include "support/device_load_suite.hpp"

std::shared_ptr<rankslice::Device> rankslice::test::make_device() { return open_gpu(0); }

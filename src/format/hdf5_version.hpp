#pragma once

#include <string>

namespace rankslice {

/// Of the HDF5 library that this process has loaded: "1.10.8".
[[nodiscard]] std::string hdf5_version();

}  // namespace rankslice

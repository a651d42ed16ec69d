#pragma once

#include <string>

#include "rankslice/store.hpp"

namespace rankslice::hdf5 {

/// The value of the attribute `complete`: a checksum of everything in a store but the tensor bytes (and side files,
/// which have their own), so that no change of names, places, digests or headers goes unseen, whatever HDF5 protects.
[[nodiscard]] std::string seal(StoreContents const& contents);

}  // namespace rankslice::hdf5

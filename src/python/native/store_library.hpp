#pragma once

#include <string>

#include "rankslice/store.hpp"

namespace rankslice::python {

/// Native stores, for rankslice._native, which is not linked with HDF5: rankslice._hdf5 gives it this.
struct StoreLibrary {
  StoreFormat const* format = nullptr;
  SaveReport (*save)(StateDict const& state, std::string const& path, Communicator& world,
                     SaveOptions const& options) = nullptr;
};

}  // namespace rankslice::python

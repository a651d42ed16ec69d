#pragma once

#include <cstdint>
#include <string>

#include "io/file.hpp"

namespace rankslice::hdf5 {

/// A sparse file in memory. HDF5 1.10 cannot close a file whose last writes failed, on a full disk for example, and
/// takes the process down at exit; so it makes the metadata of a store here, to be copied to the disk afterwards.
class MemoryFile {
 public:
  /// @throws IoError `io`
  MemoryFile();
  [[nodiscard]] int descriptor() const { return fd_.get(); }
  [[nodiscard]] std::string path() const;  ///< For `open`, in this process.
  [[nodiscard]] std::uint64_t size() const;
  /// Write the pages that were written here to the same place there. @throws IoError
  void copy_to(FileWriter& out) const;

 private:
  UniqueFd fd_;
};

}  // namespace rankslice::hdf5

#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "rankslice/tensor_catalog.hpp"

#include "core/unique_handle.hpp"
#include "io/file.hpp"

namespace rankslice {

/// Memory that the direct readers of several files share: the block that was read last.
class DirectBlock {
 public:
  DirectBlock();

 private:
  friend class DirectReader;
  struct MemoryTraits {
    using Handle = std::byte*;
    static Handle null() noexcept { return nullptr; }
    static void close(Handle memory) noexcept;
  };
  UniqueHandle<MemoryTraits> memory_;
  FileReader const* owner_ = nullptr;  // whose bytes they are
  Range range_;                        // where they stand in its file
};

/// A regular file, read past the page cache of this host, in aligned blocks; of requests that follow one another none
/// is read twice. Nothing where the file system does not do that: it refuses, or memory is all that it has. `block`
/// outlives the reader. @throws as `open_reader`
[[nodiscard]] std::unique_ptr<FileReader> open_direct_reader(std::string const& path, DirectBlock& block);

}  // namespace rankslice

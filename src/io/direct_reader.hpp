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

struct DirectFile {
  std::unique_ptr<FileReader> reader;
  bool past_page_cache = false;  ///< Known of this file, not only asked for.
};

/// A regular file, read past the page cache of this host where its file system accepts to, in aligned blocks; of
/// requests that follow one another none is read twice. `block` outlives the reader. @throws as `open_reader`
[[nodiscard]] DirectFile open_direct_reader(std::string const& path, DirectBlock& block);

}  // namespace rankslice

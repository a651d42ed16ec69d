#include <filesystem>

#include "rankslice/store.hpp"

#include "format/hdf5_names.hpp"
#include "format/hdf5_seal.hpp"
#include "format/hdf5_store_file.hpp"
#include "format/hdf5_superblock.hpp"

namespace rankslice {

namespace {

class NativeStore : public StoreFormat {
 public:
  [[nodiscard]] StoreContents read(std::string const& path) const override {
    hdf5::StoreFile store(path);
    hdf5::Subject const root{path, "/", {}, hdf5::Access::reading};
    auto const expected = store.seal();
    if (!expected) hdf5::refuse(root, "the store was not completed: it has no attribute 'complete'");
    auto contents = store.contents();
    if (auto const found = hdf5::seal(contents); found != *expected) {
      hdf5::refuse(root, "the metadata was changed: expected checksum " + *expected + ", found " + found);
    }
    return contents;
  }

  [[nodiscard]] bool recognises(std::string const& path) const override {
    return std::filesystem::is_regular_file(path) && hdf5::has_signature(*open_reader(path));
  }
};

}  // namespace

void disable_hdf5_exit_handler() { H5dont_atexit(); }

StoreFormat const& native_store() {
  static NativeStore const store;
  return store;
}

}  // namespace rankslice

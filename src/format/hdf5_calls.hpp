#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

// A parallel HDF5 includes mpi.h; its old C++ bindings are not for us.
#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <hdf5.h>

#include "rankslice/tensor_catalog.hpp"

#include "core/unique_handle.hpp"

// One thin checked wrapper per HDF5 call that we use. All are local; none needs or uses a parallel HDF5.
namespace rankslice::hdf5 {

template <herr_t (*Close)(hid_t)>
struct HandleTraits {
  using Handle = hid_t;
  static Handle null() noexcept { return H5I_INVALID_HID; }
  static void close(Handle id) noexcept { Close(id); }
};
template <herr_t (*Close)(hid_t)>
using Handle = UniqueHandle<HandleTraits<Close>>;

using UniqueFile = Handle<H5Fclose>;
using UniqueGroup = Handle<H5Gclose>;
using UniqueDataset = Handle<H5Dclose>;
using UniqueDataspace = Handle<H5Sclose>;
using UniqueDatatype = Handle<H5Tclose>;
using UniquePropertyList = Handle<H5Pclose>;
using UniqueAttribute = Handle<H5Aclose>;

/// Keeps HDF5 from printing its errors to stderr, and restores what the process had.
class QuietErrors {
 public:
  QuietErrors();
  ~QuietErrors();
  QuietErrors(QuietErrors const&) = delete;
  QuietErrors& operator=(QuietErrors const&) = delete;

 private:
  H5E_auto2_t function_ = nullptr;
  void* data_ = nullptr;
};

enum class Access : std::uint8_t { reading, writing };

/// What a call works on, for the message and type of its error.
struct Subject {
  std::string path;    ///< Of the file.
  std::string object;  ///< Inside it: "/state_dict/model.norm.weight".
  std::string tensor;  ///< The FQN, when it is one.
  Access access = Access::reading;

  [[nodiscard]] Subject at(std::string object_path, std::string fqn = {}) const {
    return {path, std::move(object_path), std::move(fqn), access};
  }
};

/// @throws IoError when something was written, or when the system could not read; FormatError otherwise: a file that
/// HDF5 cannot make sense of. The message ends with the innermost error that HDF5 reports.
[[noreturn]] void fail_call(Subject const& subject, std::string_view call);

/// @throws FormatError "path: object: reason"
[[noreturn]] void refuse(Subject const& subject, std::string_view reason);

/// Passes on the result of a call; a negative one throws as `fail_call`.
template <typename Result>
Result checked(Result result, std::string_view call, Subject const& subject) {
  if (result < 0) fail_call(subject, call);
  return result;
}

/// Close, and see the errors that a destructor would swallow: buffers are written only now.
template <herr_t (*Close)(hid_t)>
void close(UniqueHandle<HandleTraits<Close>>& handle, std::string_view call, Subject const& subject) {
  checked(Close(handle.release()), call, subject);
}

// Files. Created with checksummed metadata, data on 1 MiB boundaries and no times, so that equal contents are equal
// bytes. Never locked: not every file system can, and the writer publishes by renaming.
/// In an open, empty file, whose descriptor stays the caller's.
[[nodiscard]] UniqueFile create_file(int descriptor, Subject const& subject);
[[nodiscard]] UniqueFile open_file(Subject const& subject);  ///< For what `subject.access` says.
void flush(UniqueFile const& file, Subject const& subject);
/// From now on HDF5 reads and writes another file under this name. Does not take the descriptor.
void redirect(UniqueFile const& file, int descriptor, Subject const& subject);

// Groups. Absolute paths.
[[nodiscard]] UniqueGroup create_group(hid_t parent, Subject const& subject);
[[nodiscard]] UniqueGroup open_group(hid_t parent, Subject const& subject);

struct Link {
  std::string name;
  bool hard = false;  ///< Not soft, external or user-defined.
};
[[nodiscard]] std::vector<Link> links(UniqueGroup const& group, Subject const& subject);  ///< In no order.

// Datasets: contiguous, with their space given at once and not filled. `subject.object` is the path.
[[nodiscard]] UniqueDataset create_dataset(hid_t parent, UniqueDatatype const& type, Shape const& shape,
                                           Subject const& subject);
[[nodiscard]] UniqueDataset open_dataset(hid_t parent, Subject const& subject);
[[nodiscard]] UniqueDatatype type_of(UniqueDataset const& dataset, Subject const& subject);
[[nodiscard]] Shape shape_of(UniqueDataset const& dataset, Subject const& subject);  ///< Refuses null dataspaces.
[[nodiscard]] UniquePropertyList creation_properties(UniqueDataset const& dataset, Subject const& subject);
/// Of the first byte in the file; nothing when the dataset has no storage, as one without elements.
[[nodiscard]] std::optional<std::uint64_t> offset_of(UniqueDataset const& dataset);
[[nodiscard]] std::uint64_t stored_bytes(UniqueDataset const& dataset);

// Attributes.
void write_text(hid_t object, char const* name, std::string_view text, Subject const& subject);
void write_number(hid_t object, char const* name, std::uint64_t value, Subject const& subject);
void write_numbers(hid_t object, char const* name, std::vector<std::uint64_t> const& values, Subject const& subject);
[[nodiscard]] bool has_attribute(hid_t object, char const* name, Subject const& subject);
[[nodiscard]] std::string read_text(hid_t object, char const* name, Subject const& subject);
[[nodiscard]] std::uint64_t read_number(hid_t object, char const* name, Subject const& subject);
[[nodiscard]] std::vector<std::uint64_t> read_numbers(hid_t object, char const* name, Subject const& subject);

// Types.
[[nodiscard]] UniqueDatatype copy_type(hid_t type, Subject const& subject);
[[nodiscard]] bool same_type(UniqueDatatype const& a, UniqueDatatype const& b, Subject const& subject);

}  // namespace rankslice::hdf5

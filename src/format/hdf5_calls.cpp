#include "format/hdf5_calls.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "rankslice/error.hpp"

#include "core/literals.hpp"

namespace rankslice::hdf5 {

namespace {

constexpr std::uint64_t kMaxAttributeBytes = 64_KiB;

struct InnermostError {
  hid_t major = H5I_INVALID_HID;
  hid_t minor = H5I_INVALID_HID;
  std::string text;
};

herr_t take_innermost(unsigned depth, H5E_error2_t const* error, void* out) noexcept {
  if (depth != 0) return 0;
  auto& innermost = *static_cast<InnermostError*>(out);
  innermost.major = error->maj_num;
  innermost.minor = error->min_num;
  try {
    innermost.text = error->desc;
  } catch (...) {
    return -1;
  }
  return 0;
}

InnermostError innermost_error() {
  InnermostError error;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_innermost, &error);
  std::ranges::replace(error.text, '\n', ' ');
  if (error.text.empty()) error.text = "no reason given";
  return error;
}

std::string message(Subject const& subject, std::string_view reason) {
  return fmt::format("{}: {}: {}", subject.path, subject.object, reason);
}

UniquePropertyList file_access(Subject const& subject) {
  UniquePropertyList list(checked(H5Pcreate(H5P_FILE_ACCESS), "H5Pcreate", subject));
  checked(H5Pset_fapl_sec2(list.get()), "H5Pset_fapl_sec2", subject);
  checked(H5Pset_libver_bounds(list.get(), H5F_LIBVER_V18, H5F_LIBVER_V110), "H5Pset_libver_bounds", subject);
  checked(H5Pset_alignment(list.get(), 64_KiB, 1_MiB), "H5Pset_alignment", subject);
#if H5_VERSION_GE(1, 12, 1) || (H5_VERS_MINOR == 10 && H5_VERS_RELEASE >= 7)
  checked(H5Pset_file_locking(list.get(), 0, 1), "H5Pset_file_locking", subject);
#endif
  return list;
}

UniquePropertyList without_times(hid_t list_class, Subject const& subject) {
  UniquePropertyList list(checked(H5Pcreate(list_class), "H5Pcreate", subject));
  checked(H5Pset_obj_track_times(list.get(), false), "H5Pset_obj_track_times", subject);
  return list;
}

UniquePropertyList utf8_name(Subject const& subject) {
  UniquePropertyList list(checked(H5Pcreate(H5P_LINK_CREATE), "H5Pcreate", subject));
  checked(H5Pset_char_encoding(list.get(), H5T_CSET_UTF8), "H5Pset_char_encoding", subject);
  return list;
}

UniqueDataspace dataspace(Shape const& shape, Subject const& subject) {
  std::vector<hsize_t> const axes(shape.begin(), shape.end());
  return UniqueDataspace(
      checked(H5Screate_simple(static_cast<int>(axes.size()), axes.data(), nullptr), "H5Screate_simple", subject));
}

Shape shape_of(UniqueDataspace const& space, Subject const& subject) {
  if (H5Sget_simple_extent_type(space.get()) == H5S_NULL) refuse(subject, "expected a dataspace, found none");
  auto const rank = checked(H5Sget_simple_extent_ndims(space.get()), "H5Sget_simple_extent_ndims", subject);
  std::vector<hsize_t> axes(static_cast<std::size_t>(rank));
  checked(H5Sget_simple_extent_dims(space.get(), axes.data(), nullptr), "H5Sget_simple_extent_dims", subject);
  return {axes.begin(), axes.end()};
}

void write_attribute(hid_t object, char const* name, UniqueDatatype const& type, UniqueDataspace const& space,
                     void const* data, Subject const& subject) {
  UniqueAttribute attribute(
      checked(H5Acreate2(object, name, type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT), "H5Acreate2", subject));
  checked(H5Awrite(attribute.get(), type.get(), data), "H5Awrite", subject);
  close(attribute, "H5Aclose", subject);
}

UniqueAttribute open_attribute(hid_t object, char const* name, Subject const& subject) {
  if (!has_attribute(object, name, subject)) refuse(subject, fmt::format("has no attribute '{}'", name));
  UniqueAttribute attribute(checked(H5Aopen(object, name, H5P_DEFAULT), "H5Aopen", subject));
  auto const bytes = H5Aget_storage_size(attribute.get());
  if (bytes > kMaxAttributeBytes) {
    refuse(subject,
           fmt::format("attribute '{}': expected at most {} bytes, found {}", name, kMaxAttributeBytes, bytes));
  }
  return attribute;
}

UniqueDatatype type_of(UniqueAttribute const& attribute, Subject const& subject) {
  return UniqueDatatype(checked(H5Aget_type(attribute.get()), "H5Aget_type", subject));
}

Shape shape_of(UniqueAttribute const& attribute, Subject const& subject) {
  return shape_of(UniqueDataspace(checked(H5Aget_space(attribute.get()), "H5Aget_space", subject)), subject);
}

UniqueDatatype text_type(std::size_t bytes, Subject const& subject) {
  auto type = copy_type(H5T_C_S1, subject);
  checked(H5Tset_size(type.get(), bytes), "H5Tset_size", subject);
  checked(H5Tset_strpad(type.get(), H5T_STR_NULLPAD), "H5Tset_strpad", subject);
  checked(H5Tset_cset(type.get(), H5T_CSET_UTF8), "H5Tset_cset", subject);
  return type;
}

herr_t take_link(hid_t /*group*/, char const* name, H5L_info_t const* info, void* out) noexcept {
  try {
    static_cast<std::vector<Link>*>(out)->push_back({name, info->type == H5L_TYPE_HARD});
  } catch (...) {
    return -1;
  }
  return 0;
}

}  // namespace

QuietErrors::QuietErrors() {
  H5Eget_auto2(H5E_DEFAULT, &function_, &data_);
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

QuietErrors::~QuietErrors() { H5Eset_auto2(H5E_DEFAULT, function_, data_); }

void fail_call(Subject const& subject, std::string_view call) {
  auto const error = innermost_error();
  auto const text = message(subject, fmt::format("{} failed: {}", call, error.text));
  // HDF5 tells the errors of the system as text only, and of a read not always.
  auto const system_failed =
      (error.major == H5E_IO && error.minor == H5E_READERROR) || error.text.find(", errno = ") != std::string::npos;
  if (subject.access == Access::reading && !system_failed) throw FormatError(text, subject.path, subject.tensor);
  throw IoError(ExitCode::io, text, subject.path, subject.tensor);
}

void refuse(Subject const& subject, std::string_view reason) {
  throw FormatError(message(subject, reason), subject.path, subject.tensor);
}

UniqueFile create_file(int descriptor, Subject const& subject) {
  auto const creation = without_times(H5P_FILE_CREATE, subject);
  auto const access = file_access(subject);
  // HDF5 takes names only, and real ones; it writes nothing of worth before the file is flushed.
  UniqueFile file(checked(H5Fcreate("/dev/null", H5F_ACC_TRUNC, creation.get(), access.get()), "H5Fcreate", subject));
  redirect(file, descriptor, subject);
  return file;
}

UniqueFile open_file(Subject const& subject) {
  auto const mode = subject.access == Access::writing ? H5F_ACC_RDWR : H5F_ACC_RDONLY;
  auto const access = file_access(subject);
  return UniqueFile(checked(H5Fopen(subject.path.c_str(), mode, access.get()), "H5Fopen", subject));
}

void flush(UniqueFile const& file, Subject const& subject) {
  checked(H5Fflush(file.get(), H5F_SCOPE_GLOBAL), "H5Fflush", subject);
}

void redirect(UniqueFile const& file, int descriptor, Subject const& subject) {
  UniquePropertyList const access(checked(H5Fget_access_plist(file.get()), "H5Fget_access_plist", subject));
  void* handle = nullptr;  // the sec2 driver's: its descriptor
  checked(H5Fget_vfd_handle(file.get(), access.get(), &handle), "H5Fget_vfd_handle", subject);
  checked(::dup3(descriptor, *static_cast<int*>(handle), O_CLOEXEC), "dup3", subject);
}

UniqueGroup create_group(hid_t parent, Subject const& subject) {
  auto const name = utf8_name(subject);
  auto const creation = without_times(H5P_GROUP_CREATE, subject);
  return UniqueGroup(checked(H5Gcreate2(parent, subject.object.c_str(), name.get(), creation.get(), H5P_DEFAULT),
                             "H5Gcreate2", subject));
}

UniqueGroup open_group(hid_t parent, Subject const& subject) {
  return UniqueGroup(checked(H5Gopen2(parent, subject.object.c_str(), H5P_DEFAULT), "H5Gopen2", subject));
}

std::vector<Link> links(UniqueGroup const& group, Subject const& subject) {
  std::vector<Link> found;
  // In the order of the B-tree: for any other one HDF5 1.10 makes a table, and frees it before it is filled when a heap
  // turns out to be damaged.
  checked(H5Literate(group.get(), H5_INDEX_NAME, H5_ITER_NATIVE, nullptr, take_link, &found), "H5Literate", subject);
  return found;
}

UniqueDataset create_dataset(hid_t parent, UniqueDatatype const& type, Shape const& shape, Subject const& subject) {
  auto const name = utf8_name(subject);
  auto const creation = without_times(H5P_DATASET_CREATE, subject);
  checked(H5Pset_layout(creation.get(), H5D_CONTIGUOUS), "H5Pset_layout", subject);
  checked(H5Pset_alloc_time(creation.get(), H5D_ALLOC_TIME_EARLY), "H5Pset_alloc_time", subject);
  checked(H5Pset_fill_time(creation.get(), H5D_FILL_TIME_NEVER), "H5Pset_fill_time", subject);
  auto const space = dataspace(shape, subject);
  return UniqueDataset(checked(
      H5Dcreate2(parent, subject.object.c_str(), type.get(), space.get(), name.get(), creation.get(), H5P_DEFAULT),
      "H5Dcreate2", subject));
}

UniqueDataset open_dataset(hid_t parent, Subject const& subject) {
  return UniqueDataset(checked(H5Dopen2(parent, subject.object.c_str(), H5P_DEFAULT), "H5Dopen2", subject));
}

UniqueDatatype type_of(UniqueDataset const& dataset, Subject const& subject) {
  return UniqueDatatype(checked(H5Dget_type(dataset.get()), "H5Dget_type", subject));
}

Shape shape_of(UniqueDataset const& dataset, Subject const& subject) {
  return shape_of(UniqueDataspace(checked(H5Dget_space(dataset.get()), "H5Dget_space", subject)), subject);
}

UniquePropertyList creation_properties(UniqueDataset const& dataset, Subject const& subject) {
  return UniquePropertyList(checked(H5Dget_create_plist(dataset.get()), "H5Dget_create_plist", subject));
}

std::optional<std::uint64_t> offset_of(UniqueDataset const& dataset) {
  auto const offset = H5Dget_offset(dataset.get());
  if (offset == HADDR_UNDEF) return std::nullopt;
  return offset;
}

std::uint64_t stored_bytes(UniqueDataset const& dataset) { return H5Dget_storage_size(dataset.get()); }

void write_text(hid_t object, char const* name, std::string_view text, Subject const& subject) {
  auto const padded = text.empty() ? std::string(1, '\0') : std::string(text);  // HDF5 has no strings of length 0
  write_attribute(object, name, text_type(padded.size(), subject), dataspace({}, subject), padded.data(), subject);
}

void write_number(hid_t object, char const* name, std::uint64_t value, Subject const& subject) {
  write_attribute(object, name, copy_type(H5T_STD_U64LE, subject), dataspace({}, subject), &value, subject);
}

void write_numbers(hid_t object, char const* name, std::vector<std::uint64_t> const& values, Subject const& subject) {
  write_attribute(object, name, copy_type(H5T_STD_U64LE, subject), dataspace({values.size()}, subject), values.data(),
                  subject);
}

bool has_attribute(hid_t object, char const* name, Subject const& subject) {
  return checked(H5Aexists(object, name), "H5Aexists", subject) > 0;
}

std::string read_text(hid_t object, char const* name, Subject const& subject) {
  auto const attribute = open_attribute(object, name, subject);
  auto const type = type_of(attribute, subject);
  auto const variable = checked(H5Tis_variable_str(type.get()), "H5Tis_variable_str", subject) > 0;
  if (variable || H5Tget_class(type.get()) != H5T_STRING || !shape_of(attribute, subject).empty()) {
    refuse(subject, fmt::format("attribute '{}' is not one string of fixed length", name));
  }
  std::string text(H5Tget_size(type.get()), '\0');
  checked(H5Aread(attribute.get(), type.get(), text.data()), "H5Aread", subject);
  text.erase(text.find_last_not_of('\0') + 1);
  return text;
}

std::vector<std::uint64_t> read_numbers(hid_t object, char const* name, Subject const& subject) {
  auto const attribute = open_attribute(object, name, subject);
  auto const shape = shape_of(attribute, subject);
  auto const expected = copy_type(H5T_STD_U64LE, subject);
  if (shape.size() > 1 || !same_type(type_of(attribute, subject), expected, subject)) {
    refuse(subject, fmt::format("attribute '{}' is not a list of unsigned 64-bit numbers", name));
  }
  std::vector<std::uint64_t> values(element_count(shape));
  checked(H5Aread(attribute.get(), expected.get(), values.data()), "H5Aread", subject);
  return values;
}

std::uint64_t read_number(hid_t object, char const* name, Subject const& subject) {
  auto const values = read_numbers(object, name, subject);
  if (values.size() != 1) refuse(subject, fmt::format("attribute '{}' is not one number", name));
  return values.front();
}

UniqueDatatype copy_type(hid_t type, Subject const& subject) {
  return UniqueDatatype(checked(H5Tcopy(type), "H5Tcopy", subject));
}

bool same_type(UniqueDatatype const& a, UniqueDatatype const& b, Subject const& subject) {
  return checked(H5Tequal(a.get(), b.get()), "H5Tequal", subject) > 0;
}

}  // namespace rankslice::hdf5

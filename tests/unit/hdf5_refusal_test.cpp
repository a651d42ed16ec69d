#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "rankslice/error.hpp"

#include "hdf5_store_fixture.hpp"

namespace rankslice::test {
namespace {

using testing::HasSubstr;

constexpr auto kExperts = "/state_dict/layers.0.experts.down_projs";  // BF16 [2, 3, 4]
constexpr auto kNorm = "/state_dict/norm%2F50%25";                    // F32 [5]

/// Change a file through HDF5 itself, keeping the storage of its metadata as it is.
void edit(std::string const& path, std::function<void(hid_t file)> const& change) {
  auto const access = H5Pcreate(H5P_FILE_ACCESS);
  H5Pset_libver_bounds(access, H5F_LIBVER_V18, H5F_LIBVER_V110);
  auto const file = H5Fopen(path.c_str(), H5F_ACC_RDWR, access);
  change(file);
  H5Pclose(access);
  ASSERT_GE(H5Fclose(file), 0);
}

void remove_attribute(hid_t file, char const* object, char const* attribute) {
  if (H5Aexists_by_name(file, object, attribute, H5P_DEFAULT) > 0) {
    H5Adelete_by_name(file, object, attribute, H5P_DEFAULT);
  }
}

void set_text(hid_t file, char const* object, char const* attribute, std::string const& text) {
  remove_attribute(file, object, attribute);
  auto const type = H5Tcopy(H5T_C_S1);
  H5Tset_size(type, text.size());
  auto const space = H5Screate(H5S_SCALAR);
  auto const id = H5Acreate_by_name(file, object, attribute, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  ASSERT_GE(H5Awrite(id, type, text.data()), 0);
  H5Aclose(id);
  H5Sclose(space);
  H5Tclose(type);
}

void set_numbers(hid_t file, char const* object, char const* attribute, std::vector<std::uint64_t> const& values) {
  remove_attribute(file, object, attribute);
  hsize_t const count = values.size();
  auto const space = H5Screate_simple(1, &count, nullptr);
  auto const id =
      H5Acreate_by_name(file, object, attribute, H5T_STD_U64LE, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  ASSERT_GE(H5Awrite(id, H5T_STD_U64LE, values.data()), 0);
  H5Aclose(id);
  H5Sclose(space);
}

struct NewDataset {
  hid_t type = H5T_IEEE_F32LE;
  std::string dtype = "F32";
  std::vector<hsize_t> axes{5};
  std::function<void(hid_t properties)> shape_storage = [](hid_t properties) {
    H5Pset_alloc_time(properties, H5D_ALLOC_TIME_EARLY);
  };
};

/// Put another dataset in the place of one, or beside the others.
void put(hid_t file, char const* object, NewDataset const& dataset) {
  if (H5Lexists(file, object, H5P_DEFAULT) > 0) H5Ldelete(file, object, H5P_DEFAULT);
  auto const properties = H5Pcreate(H5P_DATASET_CREATE);
  dataset.shape_storage(properties);
  auto const space = H5Screate_simple(static_cast<int>(dataset.axes.size()), dataset.axes.data(), nullptr);
  auto const id = H5Dcreate2(file, object, dataset.type, space, H5P_DEFAULT, properties, H5P_DEFAULT);
  ASSERT_GE(id, 0) << object;
  H5Dclose(id);
  H5Sclose(space);
  H5Pclose(properties);
  set_text(file, object, "safetensors_dtype", dataset.dtype);
}

std::function<void(hid_t)> putting(char const* object, NewDataset dataset) {
  return [=](hid_t file) { put(file, object, dataset); };
}

void overwrite(hid_t file, char const* object, hid_t type, void const* data) {
  auto const id = H5Dopen2(file, object, H5P_DEFAULT);
  ASSERT_GE(H5Dwrite(id, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data), 0);
  H5Dclose(id);
}

struct Edit {
  char const* name;
  std::function<void(hid_t)> change;
  std::string message;  ///< Part of it.
  std::string tensor{};
};

void PrintTo(Edit const& edit, std::ostream* out) { *out << edit.name; }

std::vector<Edit> const kOddStorage{
    {"Chunked",
     putting(kNorm, {.shape_storage =
                         [](hid_t properties) {
                           hsize_t const chunk = 5;
                           H5Pset_chunk(properties, 1, &chunk);
                         }}),
     "/state_dict/norm%2F50%25: expected contiguous storage, found chunked", "norm/50%"},
    {"Filtered",
     putting(kNorm, {.shape_storage =
                         [](hid_t properties) {
                           hsize_t const chunk = 5;
                           H5Pset_chunk(properties, 1, &chunk);
                           H5Pset_shuffle(properties);
                         }}),
     "expected contiguous storage", "norm/50%"},
    {"Compact", putting(kNorm, {.shape_storage = [](hid_t properties) { H5Pset_layout(properties, H5D_COMPACT); }}),
     "expected contiguous storage", "norm/50%"},
    {"Virtual",
     putting(kNorm, {.shape_storage =
                         [](hid_t properties) {
                           hsize_t const count = 5;
                           auto const space = H5Screate_simple(1, &count, nullptr);
                           H5Pset_virtual(properties, space, "other.h5", "/secret", space);
                           H5Sclose(space);
                         }}),
     "expected contiguous storage", "norm/50%"},
    {"External",
     putting(kNorm, {.shape_storage = [](hid_t properties) { H5Pset_external(properties, "/etc/passwd", 0, 20); }}),
     "expected storage in this file, found an external file", "norm/50%"},
    {"NotAllocated", putting(kNorm, {.shape_storage = [](hid_t) {}}), "expected 20 bytes of storage, found 0",
     "norm/50%"},
    {"SoftLink", [](hid_t file) { H5Lcreate_soft(kNorm, file, "/state_dict/alias", H5P_DEFAULT, H5P_DEFAULT); },
     "/state_dict/alias: expected a dataset, found a soft or external link", "alias"},
    {"ExternalLink",
     [](hid_t file) { H5Lcreate_external("other.h5", "/x", file, "/state_dict/alias", H5P_DEFAULT, H5P_DEFAULT); },
     "/state_dict/alias: expected a dataset, found a soft or external link", "alias"},
    {"SecondName", [](hid_t file) { H5Lcreate_hard(file, kNorm, file, "/state_dict/alias", H5P_DEFAULT, H5P_DEFAULT); },
     "which ends at byte", "norm/50%"},
    {"Group",
     [](hid_t file) { H5Gclose(H5Gcreate2(file, "/state_dict/alias", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT)); },
     "/state_dict/alias: H5Dopen2 failed", "alias"},
};

std::vector<Edit> const kOddTensors{
    {"OtherDType", [](hid_t file) { set_text(file, kNorm, "safetensors_dtype", "I32"); },
     "attribute 'safetensors_dtype' is 'I32', but the elements are of another type", "norm/50%"},
    {"UnknownDType", [](hid_t file) { set_text(file, kExperts, "safetensors_dtype", "BF17"); },
     "is 'BF17', no dtype of safetensors", "layers.0.experts.down_projs"},
    {"NoDType", [](hid_t file) { H5Adelete_by_name(file, kNorm, "safetensors_dtype", H5P_DEFAULT); },
     "has no attribute 'safetensors_dtype'", "norm/50%"},
    {"DTypeThatIsANumber", [](hid_t file) { set_numbers(file, kNorm, "safetensors_dtype", {3}); },
     "attribute 'safetensors_dtype' is not one string of fixed length", "norm/50%"},
    {"BigEndian", putting(kNorm, {.type = H5T_IEEE_F32BE}), "the elements are of another type", "norm/50%"},
    {"PackedShapeThatDoesNotFit",
     [](hid_t file) {
       set_numbers(file, "/state_dict/layers.0.experts.packed", "safetensors_shape", {3, 8});
     },
     "expected axes [12] for F4 [3, 8], found [6]", "layers.0.experts.packed"},
    {"PackedShapeWithoutWholeBytes",
     [](hid_t file) {
       set_numbers(file, "/state_dict/layers.0.experts.packed", "safetensors_shape", {3, 3});
     },
     "the bytes of F4 [3, 3] cannot be counted", "layers.0.experts.packed"},
    {"PackedShapeThatWraps",
     [](hid_t file) {
       set_numbers(file, "/state_dict/layers.0.experts.packed", "safetensors_shape", {1ULL << 63U, 4, 3});
     },
     "cannot be counted", "layers.0.experts.packed"},
    {"ComplexWithoutPairs",
     putting("/state_dict/layers.0.phase", {.type = H5T_STD_U8LE, .dtype = "C64", .axes = {2, 4}}),
     "expected axes [2, 8] for C64 [2], found [2, 4]", "layers.0.phase"},
    {"NameThatNoEscapingMakes", putting("/state_dict/a%2fb", {}), "/state_dict/a%2fb: is not the escaped form"},
};

std::vector<Edit> const kOddMetadata{
    {"NotCompleted", [](hid_t file) { H5Adelete(file, "complete"); }, "the store was not completed"},
    {"NoFormat", [](hid_t file) { H5Adelete(file, "rankslice_format"); }, "has no attribute 'rankslice_format'"},
    {"OtherFormat", [](hid_t file) { set_text(file, "/", "rankslice_format", "native/2"); },
     "expected rankslice_format 'native/1', found 'native/2'"},
    {"NoFamily", [](hid_t file) { H5Adelete(file, "family"); }, "has no attribute 'family'"},
    {"NoTensors", [](hid_t file) { H5Ldelete(file, "/state_dict", H5P_DEFAULT); }, "/state_dict: H5Gopen2 failed"},
    {"NoDigests", [](hid_t file) { H5Ldelete(file, "/digest", H5P_DEFAULT); }, "/digest/source: H5Gopen2 failed"},
    {"DigestOfAnotherType", putting("/digest/source/a.weight", {.type = H5T_STD_I64LE, .dtype = "I64", .axes = {3}}),
     "/digest/source/a.weight: expected U64 [1 + entries], found I64 [3]"},
    {"DigestOfTwoAxes", putting("/digest/stored/a.weight", {.type = H5T_STD_U64LE, .dtype = "U64", .axes = {3, 1}}),
     "expected U64 [1 + entries], found U64 [3, 1]"},
    {"HeaderOfAnotherType", putting("/source/files/x.safetensors", {}),
     "/source/files/x.safetensors: expected U8 with one axis, found F32 [5]"},
    {"SecondIndex",
     [](hid_t file) {
       H5Ocopy(file, "/source/index/model.safetensors.index.json", file, "/source/index/z.json", H5P_DEFAULT,
               H5P_DEFAULT);
     },
     "/source/index/z.json: expected at most one index, found a second one"},
    {"ChangedIndex",
     [](hid_t file) {
       overwrite(file, "/source/index/model.safetensors.index.json", H5T_NATIVE_UCHAR, R"({"weight_map":  })");
     },
     "/source/index/model.safetensors.index.json: 18 bytes at byte"},
    {"ChangedHeader",
     [](hid_t file) {
       overwrite(file, "/source/files/model-00002-of-00002.safetensors", H5T_NATIVE_UCHAR, "another_raw_header");
     },
     "/source/files/model-00002-of-00002.safetensors: 18 bytes at byte"},
    {"ChangedConfig",
     [](hid_t file) {
       overwrite(file, "/source/side_files/config.json", H5T_NATIVE_UCHAR, R"({"model_type": "qwen3_5_mop"})");
     },
     "/source/side_files/config.json: 29 bytes at byte"},
    {"ChangedFamily", [](hid_t file) { set_text(file, "/", "family", "qwen3_6_moe"); }, "the metadata was changed"},
    {"ChangedFileSize",
     [](hid_t file) { set_numbers(file, "/source/files/model-00002-of-00002.safetensors", "file_size", {679}); },
     "the metadata was changed"},
    {"ChangedDigest",
     [](hid_t file) {
       std::uint64_t const digests[]{7, 3, 5};
       overwrite(file, "/digest/source/a.weight", H5T_NATIVE_UINT64, digests);
     },
     "the metadata was changed"},
    {"LostTensor", [](hid_t file) { H5Ldelete(file, kNorm, H5P_DEFAULT); }, "the metadata was changed"},
    {"RenamedTensor", [](hid_t file) { H5Lmove(file, kNorm, file, "/state_dict/norm", H5P_DEFAULT, H5P_DEFAULT); },
     "the metadata was changed"},
};

class Hdf5Refusal : public testing::TestWithParam<Edit> {
 protected:
  void expect_refused(std::string const& message, std::string const& tensor) {
    testing::internal::CaptureStderr();
    try {
      (void)native_store().read(path_);
      FAIL() << "expected an error: " << message;
    } catch (FormatError const& error) {
      EXPECT_THAT(error.what(), HasSubstr(message));
      EXPECT_THAT(error.what(), HasSubstr(path_));
      EXPECT_EQ(error.file, path_);
      EXPECT_EQ(error.tensor, tensor);
    }
    EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  }

  TempDir folder_;
  std::string path_ = folder_.file("store.h5");
};

TEST_P(Hdf5Refusal, NamesTheObjectAndTheReason) {
  make_store(path_, example_contents(folder_));
  edit(path_, GetParam().change);
  expect_refused(GetParam().message, GetParam().tensor);
}

std::string edit_name(testing::TestParamInfo<Edit> const& info) { return info.param.name; }
INSTANTIATE_TEST_SUITE_P(Storage, Hdf5Refusal, testing::ValuesIn(kOddStorage), edit_name);
INSTANTIATE_TEST_SUITE_P(Tensor, Hdf5Refusal, testing::ValuesIn(kOddTensors), edit_name);
INSTANTIATE_TEST_SUITE_P(Metadata, Hdf5Refusal, testing::ValuesIn(kOddMetadata), edit_name);

class Hdf5Refused : public Hdf5Refusal {};

TEST_F(Hdf5Refused, AStoreThatWasNotCompleted) {
  (void)create_store(path_, example_contents(folder_));
  expect_refused("the store was not completed", "");
}

TEST_F(Hdf5Refused, AStoreCutShortAnywhere) {
  make_store(path_, example_contents(folder_));
  auto const whole = slurp(path_);
  for (std::size_t size = 0; size < whole.size(); size += 1 + size / 16) {
    spill(path_, whole.substr(0, size));
    expect_refused(size < 8 ? "does not begin with the signature of HDF5" : "truncated: expected ", "");
  }
  spill(path_, whole.substr(0, whole.size() - 1));
  expect_refused(fmt::format("truncated: expected {} bytes, found {}", whole.size(), whole.size() - 1), "");
}

TEST_F(Hdf5Refused, AFileOfAnotherKind) {
  spill(path_, std::string(4096, 'x'));
  expect_refused("does not begin with the signature of HDF5", "");
}

TEST_F(Hdf5Refused, HDF5FilesWhoseMetadataHasNoChecksums) {
  H5Fclose(H5Fcreate(path_.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT));
  expect_refused("byte 8: expected superblock version 2 or 3, found 0", "");
}

TEST_F(Hdf5Refused, AFileThatIsNotThere) {
  try {
    (void)native_store().read(path_);
    FAIL() << "expected an error";
  } catch (IoError const& error) {
    EXPECT_EQ(error.code, ExitCode::input_missing);
    EXPECT_EQ(error.file, path_);
  }
}

TEST_F(Hdf5Refused, ToBeCompletedWhenDamaged) {
  (void)create_store(path_, example_contents(folder_));
  edit(path_, [](hid_t file) {
    overwrite(file, "/source/files/model-00002-of-00002.safetensors", H5T_NATIVE_UCHAR, "another_raw_header");
  });
  EXPECT_THROW(complete_store(path_), FormatError);
  expect_refused("the store was not completed", "");
}

TEST_F(Hdf5Refused, OnlyFilesThatBeginLikeHdf5AreRecognised) {
  make_store(path_, example_contents(folder_));
  spill(folder_.file("short"), "\x89HDF");
  EXPECT_TRUE(native_store().recognises(path_));
  EXPECT_FALSE(native_store().recognises(folder_.file("config.json")));
  EXPECT_FALSE(native_store().recognises(folder_.file("short")));
  EXPECT_FALSE(native_store().recognises(folder_.path().string()));
  EXPECT_FALSE(native_store().recognises(folder_.file("not there")));
}

}  // namespace
}  // namespace rankslice::test

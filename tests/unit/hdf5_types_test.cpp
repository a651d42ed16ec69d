#include "format/hdf5_types.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>

#include "format/hdf5_memory_file.hpp"

namespace rankslice::hdf5 {
namespace {

Subject const kSubject{"memory", "type", {}, Access::reading};

struct Fields {
  std::size_t sign = 0, exponent_at = 0, exponent_bits = 0, mantissa_at = 0, mantissa_bits = 0;
  bool operator==(Fields const&) const = default;
};

Fields fields_of(UniqueDatatype const& type) {
  Fields f;
  H5Tget_fields(type.get(), &f.sign, &f.exponent_at, &f.exponent_bits, &f.mantissa_at, &f.mantissa_bits);
  return f;
}

double as_number(DType dtype, std::uint16_t bits) {
  std::array<std::byte, 8> buffer{};
  std::memcpy(buffer.data(), &bits, sizeof bits);
  H5Tconvert(element_type(dtype, kSubject).get(), H5T_NATIVE_DOUBLE, 1, buffer.data(), nullptr, H5P_DEFAULT);
  double number = 0;
  std::memcpy(&number, buffer.data(), sizeof number);
  return number;
}

TEST(Hdf5Types, Bf16IsAFloatThatHdf5ReadsAsNumbers) {
  auto const type = element_type(DType::BF16, kSubject);
  EXPECT_EQ(fields_of(type), (Fields{15, 7, 8, 0, 7}));
  EXPECT_EQ(H5Tget_size(type.get()), 2U);
  EXPECT_EQ(H5Tget_ebias(type.get()), 127U);
  EXPECT_EQ(as_number(DType::BF16, 0x3FC0), 1.5);
  EXPECT_EQ(as_number(DType::BF16, 0xC000), -2.0);
  EXPECT_EQ(as_number(DType::BF16, 0x7F80), INFINITY);
  EXPECT_EQ(as_number(DType::BF16, 0x0001), std::ldexp(1.0, -133));
}

TEST(Hdf5Types, F16IsAFloatThatHdf5ReadsAsNumbers) {
  EXPECT_EQ(fields_of(element_type(DType::F16, kSubject)), (Fields{15, 10, 5, 0, 10}));
  EXPECT_EQ(as_number(DType::F16, 0x3E00), 1.5);
  EXPECT_EQ(as_number(DType::F16, 0x7BFF), 65504.0);
  EXPECT_EQ(as_number(DType::F16, 0x0001), std::ldexp(1.0, -24));
}

TEST(Hdf5Types, NumbersAreLittleEndianTypesOfTheirOwn) {
  std::vector<std::pair<DType, hid_t>> const expected{{DType::F32, H5T_IEEE_F32LE}, {DType::F64, H5T_IEEE_F64LE},
                                                      {DType::I8, H5T_STD_I8LE},    {DType::U8, H5T_STD_U8LE},
                                                      {DType::I16, H5T_STD_I16LE},  {DType::U16, H5T_STD_U16LE},
                                                      {DType::I32, H5T_STD_I32LE},  {DType::U32, H5T_STD_U32LE},
                                                      {DType::I64, H5T_STD_I64LE},  {DType::U64, H5T_STD_U64LE}};
  for (auto const& [dtype, type] : expected) {
    EXPECT_GT(H5Tequal(element_type(dtype, kSubject).get(), type), 0) << name(dtype);
  }
}

TEST(Hdf5Types, EverythingElseIsBytes) {
  EXPECT_EQ(dataset_shape(DType::BOOL, {3, 5}), (Shape{3, 5}));
  EXPECT_EQ(dataset_shape(DType::F8_E4M3, {3, 5}), (Shape{3, 5}));
  EXPECT_EQ(dataset_shape(DType::C64, {3, 5}), (Shape{3, 5, 8}));
  EXPECT_EQ(dataset_shape(DType::C64, {}), (Shape{8}));
  EXPECT_EQ(dataset_shape(DType::F4, {3, 4}), (Shape{6}));
  EXPECT_EQ(dataset_shape(DType::F6_E2M3, {4, 5}), (Shape{15}));
  for (auto const dtype : {DType::BOOL, DType::F8_E5M2, DType::F8_E4M3, DType::F8_E8M0, DType::F8_E4M3FNUZ,
                           DType::F8_E5M2FNUZ, DType::C64, DType::F4, DType::F6_E2M3, DType::F6_E3M2}) {
    EXPECT_GT(H5Tequal(element_type(dtype, kSubject).get(), H5T_STD_U8LE), 0) << name(dtype);
  }
}

TEST(Hdf5Types, TensorsOfEveryDTypeAndRankComeBack) {
  Subject const root{"memory", "/", {}, Access::writing};
  MemoryFile const memory;
  auto const file = create_file(memory.descriptor(), root);
  for (auto d = DType::F4; d <= DType::U64; d = static_cast<DType>(static_cast<int>(d) + 1)) {
    for (auto const& shape : {Shape{}, Shape{4}, Shape{2, 4}, Shape{2, 3, 4}, Shape{0}, Shape{3, 0, 4}}) {
      if (bits(d) < 8 && shape.empty()) continue;  // no whole number of bytes
      auto const subject = root.at(fmt::format("/{} {}", name(d), to_string(shape)));
      auto const form = tensor_form(create_tensor(file.get(), d, shape, subject), subject);
      EXPECT_EQ(form.dtype, d) << subject.object;
      EXPECT_EQ(form.shape, shape) << subject.object;
      EXPECT_EQ(form.bytes, element_count(shape) * bits(d) / 8) << subject.object;
    }
  }
}

}  // namespace
}  // namespace rankslice::hdf5

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "rankslice/error.hpp"

#include "format/safetensors.hpp"
#include "support/raw_safetensors.hpp"

namespace rankslice {
namespace {

using test::raw_header;
using testing::HasSubstr;

using Tensors = std::vector<SafetensorsHeader::Tensor>;
using Metadata = std::map<std::string, std::string>;

// The expected bytes were written by the Python package safetensors 0.8.0 (`safetensors.serialize`).

TEST(SafetensorsWriter, WritesTheBytesOfTheReferenceImplementationForEveryDtypeThatItWrites) {
  Tensors tensors;
  for (auto const dtype : {DType::BOOL, DType::U8, DType::I8, DType::I16, DType::U16, DType::F16, DType::BF16,
                           DType::I32, DType::U32, DType::F32, DType::F64, DType::I64, DType::U64, DType::F8_E4M3,
                           DType::F8_E5M2, DType::F8_E8M0, DType::F8_E4M3FNUZ, DType::F8_E5M2FNUZ, DType::C64}) {
    tensors.push_back({std::string(name(dtype)), dtype, {2}, {}});
  }
  tensors.push_back({"F4", DType::F4, {4}, {}});
  EXPECT_EQ(make_safetensors_header(tensors, {}),
            raw_header(R"({"U64":{"dtype":"U64","shape":[2],"data_offsets":[0,16]},)"
                       R"("I64":{"dtype":"I64","shape":[2],"data_offsets":[16,32]},)"
                       R"("F64":{"dtype":"F64","shape":[2],"data_offsets":[32,48]},)"
                       R"("C64":{"dtype":"C64","shape":[2],"data_offsets":[48,64]},)"
                       R"("F32":{"dtype":"F32","shape":[2],"data_offsets":[64,72]},)"
                       R"("U32":{"dtype":"U32","shape":[2],"data_offsets":[72,80]},)"
                       R"("I32":{"dtype":"I32","shape":[2],"data_offsets":[80,88]},)"
                       R"("BF16":{"dtype":"BF16","shape":[2],"data_offsets":[88,92]},)"
                       R"("F16":{"dtype":"F16","shape":[2],"data_offsets":[92,96]},)"
                       R"("U16":{"dtype":"U16","shape":[2],"data_offsets":[96,100]},)"
                       R"("I16":{"dtype":"I16","shape":[2],"data_offsets":[100,104]},)"
                       R"("F8_E5M2FNUZ":{"dtype":"F8_E5M2FNUZ","shape":[2],"data_offsets":[104,106]},)"
                       R"("F8_E4M3FNUZ":{"dtype":"F8_E4M3FNUZ","shape":[2],"data_offsets":[106,108]},)"
                       R"("F8_E8M0":{"dtype":"F8_E8M0","shape":[2],"data_offsets":[108,110]},)"
                       R"("F8_E4M3":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[110,112]},)"
                       R"("F8_E5M2":{"dtype":"F8_E5M2","shape":[2],"data_offsets":[112,114]},)"
                       R"("I8":{"dtype":"I8","shape":[2],"data_offsets":[114,116]},)"
                       R"("U8":{"dtype":"U8","shape":[2],"data_offsets":[116,118]},)"
                       R"("F4":{"dtype":"F4","shape":[4],"data_offsets":[118,120]},)"
                       R"("BOOL":{"dtype":"BOOL","shape":[2],"data_offsets":[120,122]}} )"));
}

TEST(SafetensorsWriter, OrdersTensorsOfOneDtypeByNameInBytes) {
  EXPECT_EQ(make_safetensors_header({{"b", DType::U8, {1}, {}},
                                     {"a.10", DType::U8, {2}, {}},
                                     {"a.2", DType::U8, {3}, {}},
                                     {"B", DType::U8, {4}, {}},
                                     {"\xc3\xa9", DType::U8, {5}, {}},
                                     {"z", DType::F32, {1}, {}}},
                                    {}),
            raw_header(R"({"z":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                       R"("B":{"dtype":"U8","shape":[4],"data_offsets":[4,8]},)"
                       R"("a.10":{"dtype":"U8","shape":[2],"data_offsets":[8,10]},)"
                       R"("a.2":{"dtype":"U8","shape":[3],"data_offsets":[10,13]},)"
                       R"("b":{"dtype":"U8","shape":[1],"data_offsets":[13,14]},)"
                       R"("é":{"dtype":"U8","shape":[5],"data_offsets":[14,19]}} )"));
}

TEST(SafetensorsWriter, EscapesNamesAndPutsTheMetadataFirst) {
  EXPECT_EQ(make_safetensors_header(
                {{"w\"\\\n\x01\x7f\xc3\xa9\xf0\x9f\x98\x80/", DType::F32, {}, {}}, {"z", DType::I8, {0, 3}, {}}},
                {{"format", "pt"}}),
            raw_header("{\"__metadata__\":{\"format\":\"pt\"},\"w\\\"\\\\\\n\\u0001\x7f\xc3\xa9\xf0\x9f\x98\x80/"
                       "\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},\"z\":{\"dtype\":\"I8\",\"shape\":["
                       "0,3],\"data_offsets\":[4,4]}}  "));
}

TEST(SafetensorsWriter, WritesAFileWithoutTensors) {
  EXPECT_EQ(make_safetensors_header({}, {}), raw_header("{}      "));
  EXPECT_EQ(make_safetensors_header({}, {{"a", "b"}}), raw_header(R"({"__metadata__":{"a":"b"}}      )"));
}

TEST(SafetensorsWriter, OrdersMetadataByKey) {
  EXPECT_EQ(make_safetensors_header({}, {{"b", "2"}, {"a", "1"}}),
            raw_header(R"({"__metadata__":{"a":"1","b":"2"}}      )"));
}

TEST(SafetensorsWriter, PadsEveryHeaderToAMultipleOf8) {
  for (std::size_t length = 1; length <= 16; ++length) {
    auto const header = make_safetensors_header({{std::string(length, 'n'), DType::U8, {1}, {}}}, {});
    EXPECT_EQ(header.size() % 8, 0u);
    EXPECT_EQ(parse_safetensors_header(header, header.size() + 1, "f").tensors.at(0).name, std::string(length, 'n'));
  }
}

TEST(SafetensorsWriter, WritesWhatTheParserReads) {
  Metadata const metadata{{"format", "pt"}, {"quote", "\"\\\t"}};
  auto const header = make_safetensors_header(
      {{"small", DType::F6_E2M3, {4}, {}}, {"scalar", DType::F64, {}, {}}, {"big", DType::BF16, {3, 5}, {}}}, metadata);
  auto const parsed = parse_safetensors_header(header, header.size() + 8 + 30 + 3, "f");
  EXPECT_EQ(parsed.metadata, metadata);
  ASSERT_EQ(parsed.tensors.size(), 3u);
  EXPECT_EQ(parsed.tensors[0].name, "scalar");
  EXPECT_EQ(parsed.tensors[1].name, "big");
  EXPECT_EQ(parsed.tensors[1].shape, (Shape{3, 5}));
  EXPECT_EQ(parsed.tensors[1].bytes, (Range{header.size() + 8, header.size() + 38}));
  EXPECT_EQ(parsed.tensors[2].name, "small");
}

TEST(SafetensorsWriter, RefusesAShapeThatTheFormatCannotHold) {
  try {
    (void)make_safetensors_header({{"w", DType::F4, {3}, {}}}, {});
    FAIL() << "expected a FormatError";
  } catch (FormatError const& error) {
    EXPECT_EQ(error.tensor, "w");
    EXPECT_THAT(error.what(), HasSubstr("shape [3] of F4"));
  }
}

TEST(SafetensorsWriter, RefusesAHeaderAboveTheLimitOfTheFormat) {
  EXPECT_THROW((void)make_safetensors_header({}, {{"a", std::string(kMaxHeaderBytes, 'x')}}), FormatError);
}

}  // namespace
}  // namespace rankslice

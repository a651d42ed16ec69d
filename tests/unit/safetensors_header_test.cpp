#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

#include "rankslice/error.hpp"

#include "format/safetensors.hpp"
#include "support/memory_reader.hpp"
#include "support/raw_safetensors.hpp"

namespace rankslice {
namespace {

using test::MemoryReader;
using test::raw_header;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Pair;
using namespace std::string_literals;

constexpr char const* kFile = "dir/model.safetensors";

/// The header of a file with this JSON and that many bytes of data.
SafetensorsHeader parse(std::string const& json, std::uint64_t data_bytes) {
  return parse_safetensors_header(raw_header(json), 8 + json.size() + data_bytes, kFile);
}

std::vector<std::string> names(SafetensorsHeader const& header) {
  std::vector<std::string> result;
  for (auto const& tensor : header.tensors) result.push_back(tensor.name);
  return result;
}

/// What a file is refused with.
template <typename Call>
FormatError refusal(Call&& call) {
  try {
    call();
  } catch (FormatError const& error) {
    return error;
  }
  ADD_FAILURE() << "expected a FormatError, found none";
  return FormatError("");
}

// ---- What is legal ----

TEST(SafetensorsHeader, GivesNameDtypeShapeAndBytesFromTheStartOfTheFile) {
  auto const json = R"({"w":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}})"s;
  auto const header = parse(json, 12);
  EXPECT_EQ(header.size, 8 + json.size());
  ASSERT_EQ(header.tensors.size(), 1u);
  EXPECT_EQ(header.tensors[0].name, "w");
  EXPECT_EQ(header.tensors[0].dtype, DType::BF16);
  EXPECT_EQ(header.tensors[0].shape, (Shape{2, 3}));
  EXPECT_EQ(header.tensors[0].bytes, (Range{8 + json.size(), 8 + json.size() + 12}));
}

TEST(SafetensorsHeader, OrdersTensorsByTheirBytesWhateverTheOrderOfTheJson) {
  auto const header = parse(R"({"c":{"dtype":"U8","shape":[1],"data_offsets":[3,4]},)"
                            R"("a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}})",
                            4);
  EXPECT_THAT(names(header), ElementsAre("a", "c"));
}

TEST(SafetensorsHeader, AcceptsScalarsAndAxesOfSizeZero) {
  auto const header = parse(R"({"empty":{"dtype":"F32","shape":[4,0,2],"data_offsets":[0,0]},)"
                            R"("scalar":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})",
                            4);
  EXPECT_THAT(names(header), ElementsAre("empty", "scalar"));
  EXPECT_EQ(header.tensors[1].shape, Shape{});
}

TEST(SafetensorsHeader, AcceptsEmptyTensorsAtTheOffsetOfAnotherTensor) {
  auto const header = parse(R"({"z":{"dtype":"U8","shape":[0],"data_offsets":[2,2]},)"
                            R"("y":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
                            R"("x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
                            R"("w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
                            2);
  EXPECT_THAT(names(header), ElementsAre("x", "y", "w", "z"));
}

TEST(SafetensorsHeader, AcceptsAFileWithoutTensors) { EXPECT_THAT(parse("{}", 0).tensors, IsEmpty()); }

TEST(SafetensorsHeader, AcceptsWhiteSpaceAroundTheJson) {
  EXPECT_THAT(names(parse(" \t\r\n{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}} \t\r\n", 1)),
              ElementsAre("w"));
}

TEST(SafetensorsHeader, GivesTheMetadataAndAcceptsAnEmptyOne) {
  EXPECT_THAT(parse(R"({"__metadata__":{"format":"pt","a":"\u00e9"}})", 0).metadata,
              ElementsAre(Pair("a", "\xc3\xa9"), Pair("format", "pt")));
  EXPECT_THAT(parse(R"({"__metadata__":{}})", 0).metadata, IsEmpty());
}

TEST(SafetensorsHeader, IgnoresUnknownFieldsOfATensor) {
  auto const header =
      parse(R"({"w":{"note":[1,{"dtype":"F99"}],"dtype":"U8","note":null,"shape":[1],"data_offsets":[0,1]}})", 1);
  EXPECT_THAT(names(header), ElementsAre("w"));
}

TEST(SafetensorsHeader, ReadsNamesInAnyScript) {
  EXPECT_THAT(names(parse(R"({"\ud83d\ude00/é\n":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1)),
              ElementsAre("\xf0\x9f\x98\x80/\xc3\xa9\n"));
}

TEST(SafetensorsHeader, KnowsEveryDtypeAndItsBits) {
  struct Case {
    char const* name;
    std::uint64_t bits;
  };
  for (auto const& [name, bits] :
       {Case{"F4", 4},  {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"BOOL", 8},        {"U8", 8},          {"I8", 8},
        {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
        {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
        {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64}}) {
    auto const json =
        R"({"w":{"dtype":")"s + name + R"(","shape":[8],"data_offsets":[0,)" + std::to_string(bits) + "]}}";
    auto const header = parse(json, bits);  // 8 elements of so many bits are as many bytes
    ASSERT_EQ(header.tensors.size(), 1u) << name;
    EXPECT_EQ(rankslice::name(header.tensors[0].dtype), name);
    EXPECT_EQ(header.tensors[0].bytes.size(), bits);
  }
}

TEST(SafetensorsHeader, MultipliesAxesInOrderSoThatAZeroBeforeAnOverflowIsLegal) {
  EXPECT_NO_THROW(parse(R"({"w":{"dtype":"F32","shape":[0,9223372036854775808,4],"data_offsets":[0,0]}})", 0));
}

TEST(SafetensorsHeader, AcceptsAVeryHighRank) {
  std::string ones = "1";
  for (int i = 1; i < 100'000; ++i) ones += ",1";
  auto const header = parse(R"({"w":{"dtype":"U8","shape":[)" + ones + R"(],"data_offsets":[0,1]}})", 1);
  EXPECT_EQ(header.tensors.at(0).shape, Shape(100'000, 1));
}

TEST(SafetensorsHeader, AcceptsHeadersAbove25MillionBytes) {
  std::string json = "{}";
  json.resize(25'000'008, ' ');
  EXPECT_THAT(parse(json, 0).tensors, IsEmpty());
}

// ---- The length field ----

TEST(SafetensorsHeader, RefusesAFileTooShortForALength) {
  for (std::uint64_t size = 0; size < 8; ++size) {
    std::vector<std::byte> const bytes(size);
    auto const error = refusal([&] { (void)safetensors_header_size(bytes, size, kFile); });
    EXPECT_THAT(error.what(),
                AllOf(HasSubstr(kFile), HasSubstr("8 bytes"), HasSubstr("found a file of " + std::to_string(size))));
    EXPECT_EQ(error.file, kFile);
    EXPECT_EQ(error.code, ExitCode::bad_data);
  }
}

TEST(SafetensorsHeader, RefusesALengthAbove100Million) {
  for (auto const length : {100'000'001ull, 1ull << 63, ~0ull, ~0ull - 7}) {
    auto const error = refusal([&] { (void)safetensors_header_size(raw_header(length, ""), ~0ull, kFile); });
    EXPECT_THAT(error.what(), AllOf(HasSubstr(kFile), HasSubstr("at byte 0"), HasSubstr("100000000"),
                                    HasSubstr("found " + std::to_string(length))));
  }
  EXPECT_EQ(safetensors_header_size(raw_header(100'000'000, ""), 100'000'008, kFile), 100'000'008u);
}

TEST(SafetensorsHeader, RefusesALengthBeyondTheFile) {
  auto const error = refusal([] { (void)safetensors_header_size(raw_header(3, "{}"), 10, kFile); });
  EXPECT_THAT(error.what(),
              AllOf(HasSubstr(kFile), HasSubstr("header of 3 bytes at byte 8"), HasSubstr("of 10 bytes")));
  EXPECT_EQ(safetensors_header_size(raw_header(2, "{}"), 10, kFile), 10u);
}

TEST(SafetensorsHeader, RefusesAHeaderOfAnotherSizeThanItsLengthSays) {
  auto const error = refusal([] { (void)parse_safetensors_header(raw_header(2, "{}  "), 12, kFile); });
  EXPECT_THAT(error.what(), AllOf(HasSubstr(kFile), HasSubstr("expected 10"), HasSubstr("found 12")));
}

// ---- What is refused, and how ----

struct BadHeader {
  char const* name;
  std::string json;
  std::uint64_t data_bytes;
  std::string tensor;                  ///< That the error should name; empty for none.
  std::vector<std::string> fragments;  ///< Of the message.
};

void PrintTo(BadHeader const& bad, std::ostream* stream) { *stream << bad.json; }

class BadSafetensorsHeader : public testing::TestWithParam<BadHeader> {};

TEST_P(BadSafetensorsHeader, IsRefusedByName) {
  auto const& bad = GetParam();
  auto const error = refusal([&] { (void)parse(bad.json, bad.data_bytes); });
  EXPECT_EQ(error.code, ExitCode::bad_data);
  EXPECT_EQ(error.file, kFile);
  EXPECT_EQ(error.tensor, bad.tensor);
  EXPECT_THAT(error.what(), HasSubstr(kFile));
  for (auto const& fragment : bad.fragments) EXPECT_THAT(error.what(), HasSubstr(fragment));
}

std::string name_of(testing::TestParamInfo<BadHeader> const& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(
    NotAnObject, BadSafetensorsHeader,
    testing::Values(BadHeader{"Empty", "", 0, "", {"byte 8", "found no bytes"}},
                    BadHeader{"WhiteSpaceOnly", " \n", 0, "", {"byte 8", "white space"}},
                    BadHeader{"OneByte", "{", 0, "", {"not valid JSON"}},
                    BadHeader{"Array", "[]", 0, "", {"expected '{' at byte 8", "found \"[\""}},
                    BadHeader{"String", R"( "x")", 0, "", {"expected '{' at byte 9", "found \"\"\""}},
                    BadHeader{"Number", "1", 0, "", {"expected '{' at byte 8", "found \"1\""}},
                    BadHeader{"ByteOrderMark", "\xef\xbb\xbf{}", 0, "", {"byte 8", "a byte order mark"}},
                    BadHeader{"ZerosAsPadding", "{}\0\0"s, 0, "", {"not valid JSON near byte 10"}},
                    BadHeader{"Unclosed", R"({"w":{"dtype":"U8")", 0, "w", {"not valid JSON", "at \"w\""}},
                    BadHeader{"TwoObjects", "{}{}", 0, "", {"not valid JSON near byte 10"}},
                    BadHeader{"TrailingComma", R"({"__metadata__":{"a":"b",}})", 0, "__metadata__", {"near byte 33"}},
                    BadHeader{"TooDeep",
                              R"({"w":)" + std::string(1025, '[') + std::string(1025, ']') + "}",
                              0,
                              "w",
                              {"deeper than 1024"}}),
    name_of);

INSTANTIATE_TEST_SUITE_P(
    BadText, BadSafetensorsHeader,
    testing::Values(BadHeader{"BrokenUtf8", "{\"\xff\":1}", 0, "", {"near byte 10", "UTF-8"}},
                    BadHeader{"OverlongUtf8", "{\"\xc0\x80\":1}", 0, "", {"near byte 10", "UTF-8"}},
                    BadHeader{"SurrogateInUtf8", "{\"\xed\xa0\x80\":1}", 0, "", {"near byte 11", "UTF-8"}},
                    BadHeader{"LoneHighSurrogate", R"({"\ud800":1})", 0, "", {"not valid JSON near byte 16"}},
                    BadHeader{"LoneLowSurrogate", R"({"\udc00":1})", 0, "", {"not valid JSON near byte 15"}},
                    BadHeader{"RawControlCharacter", "{\"\x01\":1}", 0, "", {"not valid JSON near byte 10"}},
                    BadHeader{"NulInAName",
                              R"({"a\u0000b":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})",
                              0,
                              "a\0b"s,
                              {"\"a\\x00b\"", "NUL"}}),
    name_of);

INSTANTIATE_TEST_SUITE_P(
    Duplicates, BadSafetensorsHeader,
    testing::Values(
        BadHeader{"Name",
                  R"({"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
                  R"("v":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
                  R"("w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                  1,
                  "w",
                  {"\"w\"", "twice"}},
        BadHeader{"NameSpeltDifferently",
                  R"({"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
                  R"("\u0077":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})",
                  0,
                  "w",
                  {"\"w\"", "twice"}},
        BadHeader{"Dtype",
                  R"({"w":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                  1,
                  "w",
                  {"\"w\"", "dtype is given twice"}},
        BadHeader{"Shape",
                  R"({"w":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}})",
                  1,
                  "w",
                  {"\"w\"", "shape is given twice"}},
        BadHeader{"DataOffsets",
                  R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"data_offsets":[0,1]}})",
                  1,
                  "w",
                  {"\"w\"", "data_offsets is given twice"}},
        BadHeader{"Metadata", R"({"__metadata__":{},"__metadata__":{}})", 0, "", {"__metadata__ is given twice"}},
        BadHeader{
            "MetadataKey", R"({"__metadata__":{"a":"1","a":"1"}})", 0, "", {"__metadata__", "\"a\" is given twice"}}),
    name_of);

INSTANTIATE_TEST_SUITE_P(
    BadMetadata, BadSafetensorsHeader,
    testing::Values(BadHeader{"Null", R"({"__metadata__":null})", 0, "", {"__metadata__", "found null"}},
                    BadHeader{"Array", R"({"__metadata__":["a"]})", 0, "", {"__metadata__", "found [\"a\"]"}},
                    BadHeader{"NumberAsValue", R"({"__metadata__":{"a":1}})", 0, "", {"\"a\"", "a string", "found 1"}},
                    BadHeader{"ObjectAsValue", R"({"__metadata__":{"a":{}}})", 0, "", {"\"a\"", "found {}"}}),
    name_of);

INSTANTIATE_TEST_SUITE_P(
    BadFields, BadSafetensorsHeader,
    testing::Values(
        BadHeader{"TensorIsNumber", R"({"w":1})", 0, "w", {"\"w\"", "an object", "found 1"}},
        BadHeader{"TensorIsArray", R"({"w":["U8",[1],[0,1]]})", 1, "w", {"\"w\"", "an object", "found [\"U8\""}},
        BadHeader{"NoDtype", R"({"w":{"shape":[1],"data_offsets":[0,1]}})", 1, "w", {"the field dtype", "none"}},
        BadHeader{"NoShape", R"({"w":{"dtype":"U8","data_offsets":[0,1]}})", 1, "w", {"the field shape", "none"}},
        BadHeader{"NoOffsets", R"({"w":{"dtype":"U8","shape":[1]}})", 1, "w", {"the field data_offsets", "none"}},
        BadHeader{
            "UnknownDtype", R"({"w":{"dtype":"F99","shape":[1],"data_offsets":[0,1]}})", 1, "w", {"found \"F99\""}},
        BadHeader{
            "LowerCaseDtype", R"({"w":{"dtype":"u8","shape":[1],"data_offsets":[0,1]}})", 1, "w", {"found \"u8\""}},
        BadHeader{"NumberAsDtype",
                  R"({"w":{"dtype":8,"shape":[1],"data_offsets":[0,1]}})",
                  1,
                  "w",
                  {"dtype: expected a string", "found 8"}},
        BadHeader{"NumberAsShape",
                  R"({"w":{"dtype":"U8","shape":1,"data_offsets":[0,1]}})",
                  1,
                  "w",
                  {"shape: expected an array", "found 1"}},
        BadHeader{"NegativeAxis",
                  R"({"w":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})",
                  1,
                  "w",
                  {"shape", "integers", "found -1"}},
        BadHeader{"FractionalAxis",
                  R"({"w":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}})",
                  1,
                  "w",
                  {"shape", "integers", "found 1.5"}},
        BadHeader{"WholeFloatAxis",
                  R"({"w":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}})",
                  1,
                  "w",
                  {"shape", "integers", "found 1"}},
        BadHeader{"ExponentAxis",
                  R"({"w":{"dtype":"U8","shape":[1e3],"data_offsets":[0,1000]}})",
                  1000,
                  "w",
                  {"shape", "integers", "found 1000"}},
        BadHeader{"StringAxis",
                  R"({"w":{"dtype":"U8","shape":["1"],"data_offsets":[0,1]}})",
                  1,
                  "w",
                  {"shape", "integers", "found \"1\""}},
        BadHeader{"AxisOf2To64",
                  R"({"w":{"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,0]}})",
                  0,
                  "w",
                  {"\"w\"", "below 2^64", "18446744073709551616"}},
        BadHeader{"AxisOf1e400", R"({"w":{"dtype":"U8","shape":[1e400],"data_offsets":[0,0]}})", 0, "w", {"\"w\""}}),
    name_of);

INSTANTIATE_TEST_SUITE_P(
    BadOffsets, BadSafetensorsHeader,
    testing::Values(
        BadHeader{"OneItem", R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[0]}})", 1, "w", {"2 items", "found 1"}},
        BadHeader{
            "ThreeItems", R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}})", 1, "w", {"2 items", "found 3"}},
        BadHeader{"Negative",
                  R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}})",
                  1,
                  "w",
                  {"data_offsets", "found -1"}},
        BadHeader{"Reversed",
                  R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[0,2]},)"
                  R"("v":{"dtype":"U8","shape":[1],"data_offsets":[2,1]}})",
                  2,
                  "w",
                  {"expected 1 bytes", "found [0, 2]"}},
        BadHeader{"ReversedFromTheStart",
                  R"({"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
                  R"("v":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}})",
                  1,
                  "v",
                  {"found [1, 0]", "before the begin"}},
        BadHeader{"NotFromZero",
                  R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                  2,
                  "w",
                  {"begin at 0", "found [1, 2]", "a hole of 1 bytes"}},
        BadHeader{"Hole",
                  R"({"v":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                  R"("w":{"dtype":"U8","shape":[1],"data_offsets":[3,4]}})",
                  4,
                  "w",
                  {"begin at 1", "found [3, 4]", "a hole of 2 bytes"}},
        BadHeader{"Overlap",
                  R"({"v":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},)"
                  R"("w":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
                  4,
                  "w",
                  {"begin at 3", "found [2, 4]", "overlaps the tensor \"v\""}},
        BadHeader{"SameBytes",
                  R"({"v":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                  R"("w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
                  2,
                  "w",
                  {"begin at 2", "found [0, 2]", "overlaps the tensor \"v\""}},
        BadHeader{"TooManyBytes",
                  R"({"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,17]}})",
                  17,
                  "w",
                  {"expected 16 bytes", "[2, 2]", "F32", "found [0, 17]"}},
        BadHeader{"TooFewBytes",
                  R"({"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,15]}})",
                  15,
                  "w",
                  {"expected 16 bytes", "found [0, 15]"}},
        BadHeader{"ProductWrapsToZero",
                  R"({"w":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}})",
                  0,
                  "w",
                  {"shape [4294967296, 4294967296] of U8"}},
        BadHeader{"OverflowBeforeAZero",
                  R"({"w":{"dtype":"F32","shape":[9223372036854775808,4,0],"data_offsets":[0,0]}})",
                  0,
                  "w",
                  {"shape [9223372036854775808, 4, 0] of F32"}},
        BadHeader{"BitsWrapToZero",
                  R"({"w":{"dtype":"U64","shape":[288230376151711744],"data_offsets":[0,0]}})",
                  0,
                  "w",
                  {"shape [288230376151711744] of U64"}},
        BadHeader{"HalfAByte", R"({"w":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}})", 1, "w", {"shape [3] of F4"}},
        BadHeader{"ThreeQuartersOfAByte",
                  R"({"w":{"dtype":"F6_E2M3","shape":[1],"data_offsets":[0,1]}})",
                  1,
                  "w",
                  {"shape [1] of F6_E2M3"}},
        BadHeader{"BeyondTheFile",
                  R"({"v":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                  R"("w":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
                  3,
                  "w",
                  {"cut off", "expected 4 bytes of data", "found 3"}},
        BadHeader{"FarBeyondTheFile",
                  R"({"w":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,18446744073709551615]}})",
                  3,
                  "w",
                  {"18446744073709551615"}},
        BadHeader{"Trailer",
                  R"({"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
                  5,
                  "",
                  {"last tensor at byte 63", "found 3 more bytes"}},
        BadHeader{"DataWithoutTensors", "{}", 1, "", {"byte 10", "found 1 more bytes"}}),
    name_of);

// ---- Reading a file ----

TEST(ReadSafetensorsHeader, ReadsTheHeaderAndNothingElse) {
  auto const header = raw_header(R"({"w":{"dtype":"U8","shape":[1000],"data_offsets":[0,1000]}})");
  auto file = header;
  file.resize(file.size() + 1000);
  MemoryReader reader(file);
  EXPECT_EQ(read_safetensors_header(reader, kFile), header);
  for (auto const& read : reader.reads()) EXPECT_LE(read.end, header.size());
}

TEST(ReadSafetensorsHeader, PassesOnTheErrorOfTheFile) {
  MemoryReader reader(raw_header("{}"));
  reader.fail_at(9);
  EXPECT_THROW((void)read_safetensors_header(reader, kFile), IoError);
}

TEST(ReadSafetensorsHeader, RefusesAFileTooShortForALength) {
  for (std::size_t size = 0; size < 8; ++size) {
    MemoryReader reader(std::vector<std::byte>(size, std::byte{1}));
    auto const error = refusal([&] { (void)read_safetensors_header(reader, kFile); });
    EXPECT_THAT(error.what(), AllOf(HasSubstr(kFile), HasSubstr("found a file of " + std::to_string(size))));
  }
}

}  // namespace
}  // namespace rankslice

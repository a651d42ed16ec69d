#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "rankslice/error.hpp"

#include "core/checked.hpp"
#include "format/safetensors.hpp"
#include "support/memory_reader.hpp"
#include "support/raw_safetensors.hpp"

// Files made to hurt: whatever the bytes, a header is refused by a FormatError or describes tensors within its file.

namespace rankslice {
namespace {

using test::MemoryReader;
using test::raw_header;
using testing::HasSubstr;

constexpr std::size_t kDataBytes = 28;

/// A small file with all that a header may have, and its data.
std::vector<std::byte> valid_file() {
  auto file = raw_header(R"({"__metadata__":{"format":"pt","n":"\u00e9"},)"
                         R"("a.weight":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},)"
                         R"("b":{"dtype":"F4","shape":[4,2],"data_offsets":[12,16]},)"
                         R"("empty":{"dtype":"U8","shape":[0],"data_offsets":[16,16]},)"
                         R"("c":{"dtype":"F32","shape":[3],"data_offsets":[16,28],"x":[1.5,null,"\\"]}}   )");
  file.resize(file.size() + kDataBytes);
  return file;
}

SafetensorsHeader parse_file(std::vector<std::byte> const& file) {
  MemoryReader reader(file);
  return parse_safetensors_header(read_safetensors_header(reader, "f"), file.size(), "f");
}

/// The tensors follow each other from the header to the end of the file, each as large as its shape.
void expect_consistent(SafetensorsHeader const& header, std::uint64_t file_size) {
  auto end = header.size;
  for (auto const& tensor : header.tensors) {
    EXPECT_EQ(tensor.bytes.begin, end);
    EXPECT_EQ(checked_byte_size(tensor.dtype, tensor.shape), tensor.bytes.size());
    end = tensor.bytes.end;
  }
  EXPECT_EQ(end, file_size);
}

/// Whether the file is accepted; if so, it is consistent.
bool survives(std::vector<std::byte> const& file) {
  try {
    expect_consistent(parse_file(file), file.size());
    return true;
  } catch (FormatError const& error) {
    EXPECT_THAT(error.what(), HasSubstr("f: "));
    EXPECT_EQ(error.file, "f");
    return false;
  }
}

TEST(HostileSafetensors, TheFileThatIsDamagedBelowIsValid) {
  EXPECT_TRUE(survives(valid_file()));
  EXPECT_EQ(parse_file(valid_file()).tensors.size(), 4u);
}

TEST(HostileSafetensors, RefusesAFileCutOffAtAnyByte) {
  auto const file = valid_file();
  for (std::size_t size = 0; size < file.size(); ++size) {
    EXPECT_FALSE(survives({file.begin(), file.begin() + static_cast<std::ptrdiff_t>(size)})) << size;
  }
}

TEST(HostileSafetensors, RefusesAFileWithABytePutInOrTakenOutOfItsHeader) {
  auto const file = valid_file();
  auto const header_size = static_cast<std::ptrdiff_t>(file.size() - kDataBytes);
  for (std::ptrdiff_t at = 0; at < header_size; ++at) {
    auto longer = file, shorter = file;
    longer.insert(longer.begin() + at, std::byte{' '});
    shorter.erase(shorter.begin() + at);
    EXPECT_FALSE(survives(longer)) << at;
    EXPECT_FALSE(survives(shorter)) << at;
  }
}

TEST(HostileSafetensors, SurvivesAnyValueOfAnyByteOfTheHeader) {
  auto file = valid_file();
  int accepted = 0;
  for (std::size_t at = 0; at < file.size() - kDataBytes; ++at) {
    auto const original = file[at];
    for (int value = 0; value < 256; ++value) {
      file[at] = static_cast<std::byte>(value);
      accepted += survives(file);
    }
    file[at] = original;
  }
  // Letters of names and of metadata may become others; digits, brackets and the names of fields may not.
  EXPECT_GT(accepted, 1000);
  EXPECT_LT(accepted, 256 * 40);
}

TEST(HostileSafetensors, SurvivesBytesMovedAboutWithinTheHeader) {
  std::mt19937 random(20240607);  // NOLINT(cert-msc51-cpp): the same run every time
  for (int run = 0; run < 20'000; ++run) {
    auto file = valid_file();
    std::uniform_int_distribution<std::size_t> place(8, file.size() - kDataBytes - 1);
    for (int swaps = 0; swaps < 1 + run % 3; ++swaps) std::swap(file[place(random)], file[place(random)]);
    (void)survives(file);
  }
}

TEST(HostileSafetensors, Refuses100MillionBrackets) {
  auto const outer = raw_header(std::string(kMaxHeaderBytes, '['));
  EXPECT_THROW((void)parse_safetensors_header(outer, outer.size(), "f"), FormatError);
}

TEST(HostileSafetensors, Refuses100MillionBracketsWithinATensor) {
  auto json = R"({"w":{"shape":)" + std::string(kMaxHeaderBytes, '[');
  json.resize(kMaxHeaderBytes);
  auto const header = raw_header(json);
  try {
    (void)parse_safetensors_header(header, header.size(), "f");
    FAIL() << "expected a FormatError";
  } catch (FormatError const& error) {
    EXPECT_EQ(error.tensor, "w");
    EXPECT_THAT(error.what(), HasSubstr("deeper than 1024"));
    EXPECT_LT(std::string(error.what()).size(), 1000u);
  }
}

TEST(HostileSafetensors, ReadsAMillionEmptyTensorsAtOneOffset) {
  constexpr std::size_t kTensors = 1'000'000;  // of 56 bytes each; the largest header holds fewer than two million
  std::string json = "{";
  for (std::size_t i = 0; i < kTensors; ++i) {
    json += (i == 0 ? "\"" : ",\"") + std::to_string(i) + R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  }
  auto const header = raw_header(json + "}");
  ASSERT_LT(header.size(), kMaxHeaderBytes);
  EXPECT_EQ(parse_safetensors_header(header, header.size(), "f").tensors.size(), kTensors);
}

TEST(HostileSafetensors, NamesTheOneDuplicateAmongManyTensors) {
  constexpr std::size_t kTensors = 100'000;
  std::string json = "{";
  for (std::size_t i = 0; i < kTensors; ++i) {
    json += '"' + std::to_string(i) + R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)";
  }
  auto const header = raw_header(json + R"("77777":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})");
  try {
    (void)parse_safetensors_header(header, header.size(), "f");
    FAIL() << "expected a FormatError";
  } catch (FormatError const& error) {
    EXPECT_EQ(error.tensor, "77777");
  }
}

TEST(HostileSafetensors, ShortensNamesAndShapesOfAnyLengthInMessages) {
  std::string const name(10'000'000, 'n');
  std::string axes = "1";
  for (int i = 0; i < 1'000'000; ++i) axes += ",1";
  auto const header = raw_header("{\"" + name + R"(":{"dtype":"U8","shape":[)" + axes + R"(],"data_offsets":[0,2]}})");
  try {
    (void)parse_safetensors_header(header, header.size() + 2, "f");
    FAIL() << "expected a FormatError";
  } catch (FormatError const& error) {
    EXPECT_LT(std::string(error.what()).size(), 1000u);
  }
}

}  // namespace
}  // namespace rankslice

#include "format/manifest.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "rankslice/error.hpp"

#include "support/refusal.hpp"

namespace rankslice {
namespace {

using test::refusal_of;
using testing::HasSubstr;

constexpr auto kPath = "ckpt/rankslice.manifest.json";

/// Two vectors of the definition of digest/1, and a tensor without elements.
Manifest example() {
  return {.created_by = "rankslice 1.2.3",
          .files = {{.name = "a/b \"c\".safetensors", .size = 18446744073709551615U, .header = std::string(32, 'a')},
                    {.name = "z.safetensors", .size = 0, .header = "99aa06d3014798d86001c324468d497f"}},
          .index_name = "model.safetensors.index.json",
          .index = std::string(32, '0'),
          .tensors = {{.key = "bias", .dtype = DType::F32, .shape = {3}, .digests = {0x38dea0e61b3e2d5b}},
                      {.key = "none", .dtype = DType::BF16, .shape = {4, 0, 2}, .digests = {0}},
                      {.key = "stacked \u00fc",
                       .dtype = DType::U16,
                       .shape = {2, 3, 4},
                       .digests = {0xfbf5c2c633a7f118, 0xe4954f3df8a62cf6, 0x176073883b01c422}}}};
}

std::string replaced(std::string text, std::string const& from, std::string const& to) {
  auto const at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(Manifest, IsOneLineForEachFileAndTensor) {
  EXPECT_EQ(to_text(example(), kPath), R"({
 "schema": "rankslice.manifest/1",
 "digest": "digest/1",
 "created_by": "rankslice 1.2.3",
 "files": {
  "a/b \"c\".safetensors": {"header":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","size":18446744073709551615},
  "z.safetensors": {"header":"99aa06d3014798d86001c324468d497f","size":0}
 },
 "index": {"name":"model.safetensors.index.json","xxh3_128":"00000000000000000000000000000000"},
 "tensors": {
  "bias": {"dtype":"F32","shape":[3],"digests":["38dea0e61b3e2d5b"]},
  "none": {"dtype":"BF16","shape":[4,0,2],"digests":["0000000000000000"]},
  "stacked ü": {"dtype":"U16","shape":[2,3,4],"digests":["fbf5c2c633a7f118","e4954f3df8a62cf6","176073883b01c422"]}
 }
}
)");
}

TEST(Manifest, ComesBackFromItsText) {
  auto manifest = example();
  EXPECT_EQ(parse_manifest(to_text(manifest, kPath), kPath), manifest);
  manifest.index_name = manifest.index = "";
  manifest.files.clear();
  EXPECT_EQ(parse_manifest(to_text(manifest, kPath), kPath), manifest);
}

TEST(Manifest, MayHaveMembersThatNobodyKnowsYet) {
  auto const text = replaced(to_text(example(), kPath), R"("files")", R"("sha256": {"z": [1]}, "files")");
  EXPECT_EQ(parse_manifest(text, kPath), example());
}

TEST(Manifest, CannotHoldANameThatIsNoUtf8) {
  auto manifest = example();
  manifest.files[0].name = "\xff.safetensors";
  auto const refusal = refusal_of([&] { (void)to_text(manifest, kPath); });
  EXPECT_EQ(refusal.code, ExitCode::bad_data);
  EXPECT_THAT(refusal.message, HasSubstr("not UTF-8"));
}

struct Broken {
  std::string from, to;
  std::string says;    // after the path
  std::string tensor;  // that the error names
};

TEST(Manifest, IsRefusedWithThePlaceAndWhatWasExpected) {
  std::vector<Broken> const cases{
      {"manifest/1", "manifest/2",
       R"(schema: expected rankslice.manifest/1, the version that is read here, found "rankslice.manifest/2")", ""},
      {"digest/1", "digest/9", R"(digest: expected digest/1, the version that is read here, found "digest/9")", ""},
      {R"("rankslice 1.2.3")", "7", "created_by: expected a text, found 7", ""},
      {R"("size":0)", R"("size":0.5)", R"(file "z.safetensors": size: expected a whole number below 2^64, found 0.5)",
       ""},
      {R"("size":0)", R"("sizes":0)", R"(file "z.safetensors": expected a member size, found none)", ""},
      {"99aa", "99AA",
       R"(file "z.safetensors": header: expected 32 hexadecimal digits, found "99AA06d3014798d86001c324468d497f")", ""},
      {R"("name":"model)", R"("name":"","model":"model)", "index: expected a name, found none", ""},
      {R"("dtype":"F32")", R"("dtype":"F31")", R"(tensor "bias": dtype: expected a dtype of safetensors, found "F31")",
       "bias"},
      {"[3]", "[-3]", R"(tensor "bias": shape: expected whole numbers, found [-3])", "bias"},
      {"[3]", "[9223372036854775808,2]", R"(tensor "bias": shape: F32 [9223372036854775808, 2] has no size)", "bias"},
      {R"(["38dea0e61b3e2d5b"])", R"("38dea0e61b3e2d5b")",
       R"(tensor "bias": digests: expected a list, found "38dea0e61b3e2d5b")", "bias"},
      {"38dea0e61b3e2d5b", "38dea0e61b3e2d5",
       R"(tensor "bias": digests: expected 16 hexadecimal digits for each digest, found ["38dea0e61b3e2d5"])", "bias"},
      {R"(["38dea0e61b3e2d5b"])", "[]", R"(tensor "bias": digests: expected 1 digests for the shape [3], found 0)",
       "bias"},
      {R"(,"176073883b01c422")", "",
       "tensor \"stacked \u00fc\": digests: expected 3 digests for the shape [2, 3, 4], found 2", "stacked \u00fc"},
      {"fbf5c2c633a7f118", "fbf5c2c633a7f119", "tensor \"stacked \u00fc\": digests: the digests do not add up",
       "stacked \u00fc"},
      {R"("none":)", R"("bias":)", "bias is given twice", ""},
  };
  for (auto const& [from, to, says, tensor] : cases) {
    auto const text = replaced(to_text(example(), kPath), from, to);
    auto const refusal = refusal_of([&] { (void)parse_manifest(text, kPath); });
    EXPECT_EQ(refusal.message, kPath + (": " + says));
    EXPECT_EQ(refusal.code, ExitCode::bad_data) << says;
    EXPECT_EQ(refusal.file, kPath) << says;
    EXPECT_EQ(refusal.tensor, tensor) << says;
  }
}

TEST(Manifest, IsRefusedWhereverItIsCutOff) {
  auto const text = to_text(example(), kPath);
  for (std::size_t size = 0; size + 2 < text.size(); ++size) {
    EXPECT_EQ(refusal_of([&] { (void)parse_manifest(text.substr(0, size), kPath); }).code, ExitCode::bad_data) << size;
  }
}

}  // namespace
}  // namespace rankslice

#include "format/sha256_sums.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/sha.hpp"
#include "support/refusal.hpp"

namespace rankslice {
namespace {

using test::refusal_of;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

std::string const kSum(64, '0');
std::string const kOther(64, 'f');

std::vector<std::string> names_in(std::string const& text) {
  std::vector<std::string> names;
  for (auto const& listed : parse_sha256_sums(text, "SHA256SUMS")) names.push_back(listed.name);
  return names;
}

std::string hash(Sha kind, std::vector<std::string> const& pieces) {
  ShaStream stream(kind);
  for (auto const& piece : pieces) stream.add(std::as_bytes(std::span(piece)));
  return stream.hex();
}

// The examples of FIPS 180, and what `git hash-object` says of an empty file.
TEST(Sha, IsThatOfTheStandard) {
  EXPECT_EQ(hash(Sha::sha256, {"abc"}), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(hash(Sha::sha256, {}), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(hash(Sha::sha1, {"abc"}), "a9993e364706816aba3e25717850c26c9cd0d89d");
  EXPECT_EQ(hash(Sha::sha1, {std::string("blob 0\0", 7)}), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
}

TEST(Sha, DoesNotDependOnThePieces) {
  std::string const text = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
  for (std::size_t cut = 0; cut <= text.size(); ++cut) {
    EXPECT_EQ(hash(Sha::sha256, {text.substr(0, cut), text.substr(cut)}),
              "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  }
}

TEST(Sha256Sums, AreReadByName) {
  auto const list = parse_sha256_sums(kOther + "  b\n" + kSum + " *a\n", "SHA256SUMS");
  EXPECT_THAT(list, ElementsAre(ListedSum{"a", kSum}, ListedSum{"b", kOther}));
}

TEST(Sha256Sums, AreReadAsCoreutilsWriteThem) {
  EXPECT_THAT(names_in(kSum + "  with  spaces \n"), ElementsAre("with  spaces "));
  EXPECT_THAT(names_in(kSum + "  no end of line"), ElementsAre("no end of line"));
  EXPECT_THAT(names_in(kSum + "  dos\r\n"), ElementsAre("dos"));
  EXPECT_THAT(names_in(kSum + "  back\\nslash\n"), ElementsAre("back\\nslash"));
  EXPECT_THAT(names_in("\\" + kSum + " *a\\\\b\\nc\\rd\n"), ElementsAre("a\\b\nc\rd"));
  EXPECT_THAT(names_in("# comment\n\n" + kSum + "  ./a//b\n" + kSum + "  a/b\n"), ElementsAre("a/b"));
  EXPECT_EQ(parse_sha256_sums(std::string(64, 'A') + "  a", "x").front().sha256, std::string(64, 'a'));
}

TEST(Sha256Sums, AreRefusedByTheirLine) {
  for (auto const& line :
       {std::string("hello"), kSum, kSum + "  ", kSum + " a", kSum + "\t a", kSum + "a  b",
        std::string(63, '0') + "g  a", std::string(62, '0') + "  a", "\\" + kSum + "  a\\tb", "\\" + kSum + "  a\\",
        kSum + std::string("  a\0b", 5), kSum + "  /a", kSum + "  ../a", kSum + "  a/../../b"}) {
    auto const refusal = refusal_of([&] { (void)names_in(kSum + "  first\n" + line + "\n"); });
    EXPECT_THAT(refusal.message, StartsWith("SHA256SUMS: line 2: expected ")) << line;
    EXPECT_EQ(refusal.code, ExitCode::bad_data);
    EXPECT_EQ(refusal.file, "SHA256SUMS");
  }
}

TEST(Sha256Sums, HaveOneSumForEachName) {
  EXPECT_THAT(names_in(kSum + "  a\n" + kSum + " *a\n"), ElementsAre("a"));
  auto const refusal = refusal_of([&] { (void)names_in(kSum + "  a\n" + kOther + "  ./a\n"); });
  EXPECT_THAT(refusal.message, HasSubstr("line 2: \"a\" is listed twice"));
}

TEST(Sha256Sums, AreNotAnEmptyList) {
  for (auto const* text : {"", "\n\n", "# nothing\n"}) {
    EXPECT_EQ(refusal_of([&] { (void)names_in(text); }).code, ExitCode::bad_data) << text;
  }
}

}  // namespace
}  // namespace rankslice

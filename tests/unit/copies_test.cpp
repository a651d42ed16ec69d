// Copies of a tensor in a folder of shards.

#include "copies.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <filesystem>

#include "rankslice/error.hpp"

#include "support/raw_checkpoint.hpp"
#include "support/raw_safetensors.hpp"
#include "support/temp_dir.hpp"

namespace rankslice {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;

constexpr std::uint64_t kNormBytes = 20, kHeadBytes = 12;

/// Two dense tensors, of which each of two files has a copy.
class Copies : public testing::Test {
 protected:
  Copies() {
    checkpoint_.format = CheckpointFormat::shards;
    checkpoint_.model = {
        .tensors = {{.key = "norm", .shape = {10}, .parameter = 0}, {.key = "head", .shape = {2, 3}, .parameter = 1}},
        .parameters = {{.fqn = "native.norm", .shape = {10}, .tensors = {0}},
                       {.fqn = "native.head", .shape = {2, 3}, .tensors = {1}}}};
    auto& storage = checkpoint_.storage;
    storage.form = Form::native;
    for (std::uint32_t file = 0; file < 2; ++file) {
      auto const path = dir_.file("rank-" + std::to_string(file));
      auto bytes = test::random_bytes(kFirst[file], file);
      for (auto const& tensor : {test::random_bytes(kNormBytes, 7), test::random_bytes(kHeadBytes, 8)}) {
        bytes.insert(bytes.end(), tensor.begin(), tensor.end());
      }
      test::write_file(path, bytes);
      storage.files.push_back({.name = fs::path(path).filename(), .path = path, .size = bytes.size()});
    }
    for (std::uint32_t parameter = 0; parameter < 2; ++parameter) {
      for (std::uint32_t file = 0; file < 2; ++file) storage.pieces.push_back(piece(parameter, file));
    }
  }

  static StoredPiece piece(std::uint32_t parameter, std::uint32_t file) {
    auto const begin = kFirst[file] + (parameter == 0 ? 0 : kNormBytes);
    auto const size = parameter == 0 ? kNormBytes : kHeadBytes;
    return {.parameter = parameter,
            .tensor = parameter,
            .slice = {.part = {0, size / 2}, .rows = {0, 1}},
            .extent = {file, {begin, begin + size}}};
  }
  [[nodiscard]] std::string const& path(std::size_t file) const { return checkpoint_.storage.files[file].path; }

  /// What comparing ends with.
  [[nodiscard]] std::string outcome() const {
    auto const world = make_solo_communicator();
    try {
      require_equal_copies(checkpoint_, *world, {});
    } catch (Error const& error) {
      return std::to_string(static_cast<int>(error.code)) + " " + error.what();
    }
    return "equal";
  }

  static constexpr std::array<std::uint64_t, 2> kFirst{3, 9};
  test::TempDir dir_;
  Checkpoint checkpoint_;
};

TEST_F(Copies, ThatAreEqualAreAccepted) { EXPECT_EQ(outcome(), "equal"); }

TEST_F(Copies, ThatDifferAreNamedWithTheirFiles) {
  test::flip_byte(path(1), kFirst[1] + kNormBytes + 4);
  EXPECT_THAT(outcome(), HasSubstr("native.head: the copies in " + path(0) + " and " + path(1) + " differ"));
  test::flip_byte(path(0), kFirst[0] + kNormBytes + 4);
  EXPECT_EQ(outcome(), "equal");
}

TEST_F(Copies, InAFileThatChangedSinceItWasOpenedAreNotCompared) {
  checkpoint_.storage.files[1].size += 8;
  EXPECT_THAT(outcome(), HasSubstr(path(1) + ": expected 49 bytes, as when its header was read, found 41"));
  checkpoint_.storage.files[1].size -= 8;
  checkpoint_.storage.files[1].modified_ns = 1;
  EXPECT_THAT(outcome(), HasSubstr(path(1) + ": changed since its header was read"));
}

// In the HF form a gate and an up matrix are the same slice of their parameter, and no copies.
TEST_F(Copies, AreNotLookedForWhereThereAreNone) {
  checkpoint_.format = CheckpointFormat::huggingface;
  test::flip_byte(path(1), kFirst[1]);
  EXPECT_EQ(outcome(), "equal");
}

}  // namespace
}  // namespace rankslice

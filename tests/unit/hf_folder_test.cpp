#include "format/hf_folder.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "rankslice/error.hpp"

#include "support/raw_safetensors.hpp"
#include "support/temp_dir.hpp"

namespace rankslice {
namespace {

using test::bytes_of;
using test::raw_header;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using namespace std::string_literals;
namespace fs = std::filesystem;

constexpr char const* kIndex = "model.safetensors.index.json";

/// The JSON of a file with one tensor of two bytes.
std::string one_tensor(std::string const& name) {
  return "{\"" + name + R"(":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})";
}

class HfFolder : public testing::Test {
 protected:
  std::string path(std::string const& name) const { return dir_.file(name); }
  std::string folder() const { return dir_.path().string(); }

  void write(std::string const& name, std::string const& text) const {
    fs::create_directories(fs::path(path(name)).parent_path());
    test::write_file(path(name), bytes_of(text));
  }
  /// A shard with one tensor of two bytes.
  void write_shard(std::string const& name, std::string const& tensor) const {
    fs::create_directories(fs::path(path(name)).parent_path());
    test::write_safetensors(path(name), one_tensor(tensor), 2);
  }
  /// An index with this weight_map.
  void write_index(std::string const& weight_map) const { write(kIndex, R"({"weight_map":)" + weight_map + "}"); }

  HfLayout read() { return read_hf_folder(folder(), warnings_); }

  std::vector<std::string> warnings_;

 private:
  test::TempDir dir_;
};

std::vector<std::string> names(std::vector<HfFile> const& files) {
  std::vector<std::string> result;
  for (auto const& file : files) result.push_back(file.name);
  return result;
}

std::vector<std::string> names(std::vector<SideFile> const& files) {
  std::vector<std::string> result;
  for (auto const& file : files) result.push_back(file.name);
  return result;
}

/// The error of this type that a call ends with.
template <typename Expected>
Expected error_of(std::function<void()> const& call, Expected none) {
  try {
    call();
  } catch (Expected const& error) {
    return error;
  }
  ADD_FAILURE() << "expected an error, found none";
  return none;
}

FormatError format_error(std::function<void()> const& call) { return error_of(call, FormatError("")); }

IoError missing(std::function<void()> const& call) {
  auto const error = error_of(call, IoError(ExitCode::input_missing, ""));
  EXPECT_EQ(error.code, ExitCode::input_missing);
  return error;
}

// ---- Without an index ----

TEST_F(HfFolder, WithoutAnIndexTheNamesTellThatAShardIsMissing) {
  write_shard("model-00001-of-00003.safetensors", "a");
  write_shard("model-00003-of-00003.safetensors", "c");
  EXPECT_THAT(missing([&] { read(); }).what(), HasSubstr("expected 3 files model-*-of-00003.safetensors, as their "
                                                         "names say, found 2"));
  write_shard("model-00002-of-00003.safetensors", "b");
  EXPECT_EQ(read().files.size(), 3U);
}

TEST_F(HfFolder, TheHeadersOfManyFilesAreEachTheirOwnHoweverManyThreadsRead) {
  for (int i = 100; i < 180; ++i) write_shard("part-" + std::to_string(i) + ".safetensors", std::to_string(i));
  auto const files = read().files;
  ASSERT_EQ(files.size(), 80U);
  for (std::size_t i = 0; i < files.size(); ++i) {
    auto const number = std::to_string(100 + i);
    EXPECT_EQ(files[i].name, "part-" + number + ".safetensors");
    EXPECT_EQ(files[i].header, raw_header(one_tensor(number)));
  }
}

TEST_F(HfFolder, OfManyFilesTheFirstBrokenOneIsNamed) {
  for (int i = 100; i < 180; ++i) write_shard("part-" + std::to_string(i) + ".safetensors", std::to_string(i));
  for (auto const* broken : {"part-178", "part-131", "part-155"}) write(broken + ".safetensors"s, "short");
  EXPECT_THAT(format_error([&] { read(); }).what(), HasSubstr("part-131.safetensors"));
}

// ---- With an index ----

TEST_F(HfFolder, ReadsTheIndexAndTheHeadersOfItsShardsByName) {
  auto const weight_map = R"({"b":"model-00002-of-00002.safetensors","a":"model-00001-of-00002.safetensors"})"s;
  write_index(weight_map);
  write_shard("model-00001-of-00002.safetensors", "a");
  write_shard("model-00002-of-00002.safetensors", "b");
  auto const layout = read();
  EXPECT_EQ(layout.index_name, kIndex);
  EXPECT_EQ(layout.index, bytes_of(R"({"weight_map":)" + weight_map + "}"));
  ASSERT_THAT(names(layout.files), ElementsAre("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"));
  EXPECT_EQ(layout.files[0].header, raw_header(one_tensor("a")));
  EXPECT_EQ(layout.files[0].size, raw_header(one_tensor("a")).size() + 2);
  EXPECT_THAT(warnings_, IsEmpty());
}

TEST_F(HfFolder, FollowsLinksOutOfTheFolderAsTheCacheOfTheHubHasThem) {
  test::TempDir blobs;
  test::write_safetensors(blobs.file("etag"), one_tensor("a"), 2);
  fs::create_symlink(blobs.file("etag"), blobs.file("second-hop"));
  fs::create_symlink(blobs.file("second-hop"), path("s.safetensors"));
  test::write_file(blobs.file("config"), bytes_of("{}"));
  fs::create_symlink(blobs.file("config"), path("config.json"));
  write_index(R"({"a":"s.safetensors"})");
  auto const layout = read();
  EXPECT_THAT(names(layout.files), ElementsAre("s.safetensors"));
  EXPECT_EQ(layout.config, bytes_of("{}"));
}

TEST_F(HfFolder, ReadsShardsInSubfolders) {
  write_index(R"({"a":"text/s.safetensors","b":"vision/s.safetensors"})");
  write_shard("text/s.safetensors", "a");
  write_shard("vision/s.safetensors", "b");
  EXPECT_THAT(names(read().files), ElementsAre("text/s.safetensors", "vision/s.safetensors"));
}

TEST_F(HfFolder, NamesAMissingShardAndWhatItShouldHold) {
  write_index(R"({"a":"s1.safetensors","b":"s2.safetensors","c":"s2.safetensors"})");
  write_shard("s1.safetensors", "a");
  auto const error = missing([&] { (void)read(); });
  EXPECT_EQ(error.file, path("s2.safetensors"));
  EXPECT_THAT(error.what(), AllOf(HasSubstr(path("s2.safetensors")), HasSubstr("no such file"), HasSubstr(kIndex),
                                  HasSubstr("2 tensors"), HasSubstr("1 of 2 shards")));
}

TEST_F(HfFolder, SaysThatALinkLeadsNowhere) {
  write_index(R"({"a":"dangling.safetensors"})");
  fs::create_symlink("../blobs/gone", path("dangling.safetensors"));
  EXPECT_THAT(missing([&] { (void)read(); }).what(), HasSubstr("dangling.safetensors: a link that leads to no file"));
}

TEST_F(HfFolder, DoesNotHangOnALoopOfLinks) {
  write_index(R"({"a":"one.safetensors"})");
  fs::create_symlink("two.safetensors", path("one.safetensors"));
  fs::create_symlink("one.safetensors", path("two.safetensors"));
  EXPECT_THAT(missing([&] { (void)read(); }).what(), HasSubstr("one.safetensors: a link that leads to no file"));
}

TEST_F(HfFolder, RefusesAFolderAsAShard) {
  write_index(R"({"a":"s.safetensors"})");
  fs::create_directory(path("s.safetensors"));
  EXPECT_THAT(format_error([&] { (void)read(); }).what(),
              AllOf(HasSubstr(path("s.safetensors")), HasSubstr("expected a file, found a folder")));
}

TEST_F(HfFolder, RefusesAPipeAsAShardWithoutWaitingForItsWriter) {
  write_index(R"({"a":"s.safetensors"})");
  ASSERT_EQ(::mkfifo(path("s.safetensors").c_str(), 0600), 0);
  EXPECT_THAT(format_error([&] { (void)read(); }).what(), HasSubstr("expected a file, found a pipe"));
}

TEST_F(HfFolder, RefusesADeviceAsAShard) {
  write_index(R"({"a":"s.safetensors"})");
  fs::create_symlink("/dev/zero", path("s.safetensors"));
  EXPECT_THAT(format_error([&] { (void)read(); }).what(), HasSubstr("expected a file, found a device"));
}

TEST_F(HfFolder, RefusesTwoNamesOfOneFile) {
  write_index(R"({"a":"s1.safetensors","b":"s2.safetensors"})");
  write_shard("s1.safetensors", "a");
  fs::create_symlink("s1.safetensors", path("s2.safetensors"));
  EXPECT_THAT(format_error([&] { (void)read(); }).what(),
              AllOf(HasSubstr(path("s2.safetensors")), HasSubstr("the same file as s1.safetensors")));
}

TEST_F(HfFolder, RefusesABrokenHeaderByItsFile) {
  write_index(R"({"a":"s.safetensors"})");
  write("s.safetensors", "\x01\x02\x03");
  EXPECT_EQ(format_error([&] { (void)read(); }).file, path("s.safetensors"));
}

TEST_F(HfFolder, RefusesABrokenIndexByItsFile) {
  write(kIndex, "{");
  EXPECT_EQ(format_error([&] { (void)read(); }).file, path(kIndex));
}

TEST_F(HfFolder, SaysThatAnIndexLeadsNowhere) {
  fs::create_symlink("gone", path(kIndex));
  EXPECT_EQ(missing([&] { (void)read(); }).file, path(kIndex));
}

TEST_F(HfFolder, TakesAnIndexOfAnotherName) {
  write("other.safetensors.index.json", R"({"weight_map":{"a":"s.safetensors"}})");
  write_shard("s.safetensors", "a");
  EXPECT_EQ(read().index_name, "other.safetensors.index.json");
}

TEST_F(HfFolder, PrefersTheUsualIndexAmongSeveral) {
  write_index(R"({"a":"s.safetensors"})");
  write("another.safetensors.index.json", "not even JSON");
  write_shard("s.safetensors", "a");
  auto const layout = read();
  EXPECT_EQ(layout.index_name, kIndex);
  EXPECT_THAT(layout.left_out, ElementsAre("another.safetensors.index.json"));
}

TEST_F(HfFolder, RefusesToChooseAmongUnusualIndexes) {
  write("a.safetensors.index.json", "{}");
  write("b.safetensors.index.json", "{}");
  EXPECT_THAT(format_error([&] { (void)read(); }).what(),
              AllOf(HasSubstr(folder()), HasSubstr("a.safetensors.index.json, b.safetensors.index.json")));
}

TEST_F(HfFolder, WarnsOfWeightsThatTheIndexDoesNotName) {
  write_index(R"({"a":"s.safetensors"})");
  write_shard("s.safetensors", "a");
  write_shard("consolidated.safetensors", "a");
  EXPECT_THAT(read().left_out, ElementsAre("consolidated.safetensors"));
  EXPECT_THAT(warnings_, ElementsAre(AllOf(HasSubstr(path("consolidated.safetensors")), HasSubstr(kIndex))));
}

// ---- Without an index ----

TEST_F(HfFolder, ReadsOneFileWithoutAnIndex) {
  write_shard("model.safetensors", "a");
  auto const layout = read();
  EXPECT_EQ(layout.index_name, "");
  EXPECT_THAT(layout.index, IsEmpty());
  EXPECT_THAT(names(layout.files), ElementsAre("model.safetensors"));
}

TEST_F(HfFolder, ReadsEveryFileOfTheTopLevelWithoutAnIndex) {
  write_shard("b.safetensors", "b");
  write_shard("a.safetensors", "a");
  write_shard("below/c.safetensors", "c");
  auto const layout = read();
  EXPECT_THAT(names(layout.files), ElementsAre("a.safetensors", "b.safetensors"));
  EXPECT_THAT(layout.left_out, ElementsAre("below"));
}

TEST_F(HfFolder, RefusesWhatIsNoFileWithoutAnIndexToo) {
  ASSERT_EQ(::mkfifo(path("s.safetensors").c_str(), 0600), 0);
  EXPECT_EQ(format_error([&] { (void)read(); }).file, path("s.safetensors"));
}

// ---- Nothing to read ----

TEST_F(HfFolder, SaysThatAFolderIsMissing) {
  auto const error = missing([&] { (void)read_hf_folder(path("nowhere"), warnings_); });
  EXPECT_THAT(error.what(), AllOf(HasSubstr(path("nowhere")), HasSubstr("no such folder")));
}

TEST_F(HfFolder, AsksForTheFolderOfAFile) {
  write_shard("model.safetensors", "a");
  auto const error = missing([&] { (void)read_hf_folder(path("model.safetensors"), warnings_); });
  EXPECT_THAT(error.what(), AllOf(HasSubstr("found a file"), HasSubstr("pass the folder")));
}

TEST_F(HfFolder, SaysWhatIsThereInsteadOfWeights) {
  write("config.json", "{}");
  write("pytorch_model.bin", "");
  EXPECT_THAT(missing([&] { (void)read(); }).what(),
              AllOf(HasSubstr(folder()), HasSubstr("*.safetensors"), HasSubstr("config.json, pytorch_model.bin")));
}

TEST_F(HfFolder, SaysThatWeightsInOtherFormatsAreNotRead) {
  write("pytorch_model.bin", "");
  EXPECT_THAT(missing([&] { (void)read(); }).what(), HasSubstr("weights in other formats are not read"));
}

TEST_F(HfFolder, FindsTheSnapshotBelowARepositoryOfTheHubsCache) {
  write("refs/main", "0123");
  write_shard("snapshots/0123/model.safetensors", "a");
  EXPECT_THAT(missing([&] { (void)read(); }).what(), HasSubstr("did you mean " + path("snapshots/0123") + "?"));
}

TEST_F(HfFolder, ListsTheMissingShards) {
  write_index(R"({"a":"one.safetensors","b":"two.safetensors","c":"three.safetensors"})");
  write_shard("two.safetensors", "b");
  EXPECT_THAT(missing([&] { (void)read(); }).what(),
              HasSubstr("(2 of 3 shards are missing: one.safetensors, three.safetensors)"));
}

TEST_F(HfFolder, SaysThatAFolderIsEmpty) {
  EXPECT_THAT(missing([&] { (void)read(); }).what(), HasSubstr("an empty folder"));
}

TEST_F(HfFolder, ShowsOnlySomeOfManyNames) {
  for (int i = 10; i < 30; ++i) write("note-" + std::to_string(i), "");
  EXPECT_THAT(missing([&] { (void)read(); }).what(),
              AllOf(HasSubstr("note-17 and 12 more"), Not(HasSubstr("note-18"))));
}

// ---- Side files ----

TEST_F(HfFolder, CarriesSmallFilesOfTheTopLevelAlong) {
  write_shard("model.safetensors", "a");
  write("config.json", R"({"x":1})");
  write("README.md", "read me");
  write(".gitattributes", "");
  auto const layout = read();
  ASSERT_THAT(names(layout.side_files), ElementsAre(".gitattributes", "README.md", "config.json"));
  EXPECT_EQ(layout.side_files[1].size, 7u);
  EXPECT_EQ(layout.side_files[1].path, path("README.md"));
  EXPECT_EQ(layout.side_files[1].offset, 0u);
  EXPECT_EQ(layout.config, bytes_of(R"({"x":1})"));
  EXPECT_THAT(layout.left_out, IsEmpty());
}

TEST_F(HfFolder, CarriesFilesUpTo256MiBAlong) {
  write_shard("model.safetensors", "a");
  write("at-the-limit.dat", "");
  fs::resize_file(path("at-the-limit.dat"), 256 << 20);  // sparse
  write("above-it.dat", "");
  fs::resize_file(path("above-it.dat"), (256 << 20) + 1);
  auto const layout = read();
  EXPECT_THAT(names(layout.side_files), ElementsAre("at-the-limit.dat"));
  EXPECT_THAT(layout.left_out, ElementsAre("above-it.dat"));
}

TEST_F(HfFolder, LeavesOutFoldersOtherWeightsAndWhatIsNoFile) {
  write_shard("model.safetensors", "a");
  write(".cache/huggingface", "");
  write(".git/HEAD", "");
  write("assets/logo.png", "");
  write("pytorch_model.bin", "");
  write("pytorch_model.bin.index.json", "{}");
  write("weights.pt", "");
  fs::create_symlink("gone", path("dangling.txt"));
  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  auto const layout = read();
  EXPECT_THAT(names(layout.side_files), IsEmpty());
  EXPECT_THAT(layout.left_out, ElementsAre(".cache", ".git", "assets", "dangling.txt", "pipe", "pytorch_model.bin",
                                           "pytorch_model.bin.index.json", "weights.pt"));
  EXPECT_THAT(warnings_, IsEmpty());
}

TEST_F(HfFolder, LeavesOutFilesOfOurOwn) {
  write_shard("model.safetensors", "a");
  write_shard("rank-00000.safetensors", "a");
  write_shard("rank-last.safetensors", "b");  // anyone's
  write("rankslice.manifest.json", "{}");
  write("OUT.partial-1234", "");
  write("m.partial-7.safetensors", "");
  auto const layout = read();
  EXPECT_THAT(names(layout.files), ElementsAre("model.safetensors", "rank-last.safetensors"));
  EXPECT_THAT(names(layout.side_files), IsEmpty());
  EXPECT_THAT(layout.left_out, ElementsAre("OUT.partial-1234", "m.partial-7.safetensors", "rank-00000.safetensors",
                                           "rankslice.manifest.json"));
  EXPECT_THAT(warnings_, IsEmpty());
}

}  // namespace
}  // namespace rankslice

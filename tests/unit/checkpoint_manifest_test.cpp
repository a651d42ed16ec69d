#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>

#include "rankslice/load.hpp"
#include "rankslice/manifest.hpp"
#include "rankslice/verify.hpp"

#include "support/raw_checkpoint.hpp"
#include "support/refusal.hpp"
#include "support/temp_dir.hpp"

namespace rankslice {
namespace {

namespace fs = std::filesystem;
using test::refusal_of;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

class CheckpointManifestTest : public testing::Test {
 protected:
  CheckpointManifestTest() { test::write_small_checkpoint(folder_); }

  [[nodiscard]] std::shared_ptr<Checkpoint const> open(OpenOptions const& options = {}) const {
    return open_checkpoint(folder_, options);
  }
  void write(std::string const& path, SaveOptions const& options = {}) {
    auto const checkpoint = open({.without_manifest = true});
    write_manifest(*checkpoint, digest(*checkpoint, *world_), path, *world_, options);
  }

  test::TempDir dir_;
  std::string const folder_ = dir_.file("ckpt");
  std::string const default_ = folder_ + "/rankslice.manifest.json";
  std::unique_ptr<Communicator> world_ = make_solo_communicator();
};

TEST_F(CheckpointManifestTest, OpeningFindsTheOneInTheFolderUnlessToldNotTo) {
  EXPECT_EQ(open()->digests_from, "");
  write(default_);
  auto const with = open();
  EXPECT_EQ(with->digests_from, "manifest");
  ASSERT_TRUE(with->digests.has_value());
  EXPECT_TRUE(with->digests->without_values);
  EXPECT_FALSE(open({.without_manifest = true})->digests.has_value());
}

TEST_F(CheckpointManifestTest, OpeningTakesTheOneThatIsNamed) {
  write(dir_.file("m.json"));
  EXPECT_FALSE(open()->digests.has_value());
  EXPECT_TRUE(open({.manifest = dir_.file("m.json")})->digests.has_value());
  auto const refusal = refusal_of([&] { (void)open({.manifest = dir_.file("none.json")}); });
  EXPECT_EQ(refusal.code, ExitCode::input_missing);
  EXPECT_EQ(refusal.file, dir_.file("none.json"));
}

TEST_F(CheckpointManifestTest, ItIsNeitherASideFileNorInTheFingerprint) {
  auto const before = open();
  write(default_);
  auto const after = open();
  EXPECT_EQ(after->fingerprint, before->fingerprint);
  EXPECT_EQ(after->hf.side_files.size(), before->hf.side_files.size());
}

TEST_F(CheckpointManifestTest, ARankAloneComparesWhatItReads) {
  write(default_);
  auto const source = open();
  auto const mesh = make_mesh(2);
  auto const good = verify(load(source, mesh, mesh.coordinate(1)));
  EXPECT_EQ(good.reference, "manifest");
  EXPECT_THAT(good.mismatches, IsEmpty());

  auto const tensor = test::read_raw_tensors(folder_).at(test::kGateUpOfLayer2);
  auto const modified = fs::last_write_time(tensor.file);
  test::flip_byte(tensor.file, tensor.offset + tensor.bytes.size() - 1);
  fs::last_write_time(tensor.file, modified);
  auto const bad = verify(load(source, mesh, mesh.coordinate(1)));
  ASSERT_EQ(bad.mismatches.size(), 1U);
  EXPECT_EQ(bad.mismatches[0].tensor, test::kGateUpOfLayer2);
  EXPECT_EQ(bad.mismatches[0].expert, 3);
  EXPECT_THAT(bad.mismatches[0].what, HasSubstr("manifest digest"));
}

TEST_F(CheckpointManifestTest, ValuesThatLoadingConvertsAreComparedOnlyByWhatTheyWereReadFrom) {
  write(default_);
  auto const source = open({.dtype = DType::F32});
  auto const mesh = make_mesh(1);
  auto const state = load(source, mesh, *world_);
  EXPECT_THAT(verify(state, *world_).mismatches, IsEmpty());
  EXPECT_EQ(verify(state, *world_).reference, "manifest");
}

TEST_F(CheckpointManifestTest, OneOfFilesThatChangedIsAWarningOrAnError) {
  write(default_);
  auto const index = folder_ + "/model.safetensors.index.json";
  auto text = test::file_bytes(index);
  text.push_back(std::byte{'\n'});
  std::ofstream(index, std::ios::binary).write(reinterpret_cast<char const*>(text.data()), std::ssize(text));
  auto const opened = open();
  EXPECT_FALSE(opened->digests.has_value());
  EXPECT_THAT(opened->warnings, ElementsAre(HasSubstr("model.safetensors.index.json: expected")));
  EXPECT_EQ(refusal_of([&] { (void)open({.manifest = default_}); }).code, ExitCode::bad_data);
}

TEST_F(CheckpointManifestTest, OneOfAnotherVersionIsAWarningOrAnError) {
  write(default_);
  auto const text = test::file_bytes(default_);
  for (auto const& [from, to] :
       {std::pair("rankslice.manifest/1", "rankslice.manifest/2"), std::pair("digest/1", "digest/2")}) {
    std::string changed(reinterpret_cast<char const*>(text.data()), text.size());
    changed.replace(changed.find(from), std::string_view(from).size(), to);
    std::ofstream(default_, std::ios::binary) << changed;
    auto const opened = open();
    EXPECT_FALSE(opened->digests.has_value());
    EXPECT_THAT(opened->warnings, ElementsAre(AllOf(HasSubstr(to), HasSubstr("is not used"))));
    EXPECT_EQ(refusal_of([&] { (void)open({.manifest = default_}); }).code, ExitCode::bad_data);
  }
}

TEST_F(CheckpointManifestTest, OneThatIsDamagedIsRefusedWithAWayOut) {
  std::ofstream(default_) << "{";
  auto const refusal = refusal_of([&] { (void)open(); });
  EXPECT_EQ(refusal.code, ExitCode::bad_data);
  EXPECT_EQ(refusal.file, default_);
  EXPECT_THAT(refusal.message, HasSubstr("remove it, or let verify --write-manifest --overwrite replace it"));
  auto const named = refusal_of([&] { (void)open({.manifest = default_}); });
  EXPECT_THAT(named.message, Not(HasSubstr("remove it")));
}

TEST_F(CheckpointManifestTest, OfAReferenceTheBytesCountAndNotWhatIsRecordedOfThem) {
  write(default_);
  auto const other = dir_.file("other");
  fs::copy(folder_, other);
  auto const tensor = test::read_raw_tensors(other).at(test::kGateUpOfLayer2);
  test::flip_byte(tensor.file, tensor.offset);
  auto const source = open({.without_manifest = true});
  auto const rotten = open_checkpoint(other);
  ASSERT_EQ(rotten->digests_from, "manifest");
  auto const report = verify(*source, *world_, {.against = rotten.get()});
  EXPECT_EQ(report.reference, "against");
  ASSERT_EQ(report.mismatches.size(), 2U);
  EXPECT_THAT(report.mismatches[0].what, HasSubstr("manifest of " + other + " digest"));
  EXPECT_THAT(report.mismatches[1].what, HasSubstr("against digest"));
  for (auto const& mismatch : report.mismatches) {
    EXPECT_EQ(mismatch.tensor, test::kGateUpOfLayer2);
    EXPECT_EQ(mismatch.expert, 0);
  }
}

TEST_F(CheckpointManifestTest, LevelsThatCompareNothingRefuseAReference) {
  auto const source = open();
  auto const mesh = make_mesh(1);
  auto const state = load(source, mesh, *world_);
  for (auto const level : {VerifyLevel::off, VerifyLevel::coverage}) {
    VerifyOptions const options{.level = level, .against = source.get()};
    for (auto const& call : {std::function([&] { (void)verify(*source, *world_, options); }),
                             std::function([&] { (void)verify(state, *world_, options); })}) {
      auto const refusal = refusal_of(call);
      EXPECT_EQ(refusal.code, ExitCode::usage);
      EXPECT_THAT(refusal.message, AllOf(HasSubstr(folder_), HasSubstr(name(level))));
    }
  }
}

TEST_F(CheckpointManifestTest, ASelectionHasThePartOfItThatItNeedsAndGetsNone) {
  write(default_);
  auto const selected = select_tensors(open(), key_selection(R"(model\.language_model\.layers\.2)"));
  ASSERT_TRUE(selected->digests.has_value());
  EXPECT_EQ(selected->digests_from, "manifest");
  auto const found = digest(*selected, *world_);
  EXPECT_TRUE(std::ranges::equal(selected->digests->source.values(), found.source.values()));
  auto const refusal = refusal_of([&] { write_manifest(*selected, found, dir_.file("m.json"), *world_); });
  EXPECT_EQ(refusal.code, ExitCode::usage);
  EXPECT_THAT(refusal.message, HasSubstr("a selection of its tensors"));
}

TEST_F(CheckpointManifestTest, NothingThatIsThereIsReplacedUnasked) {
  write(default_);
  EXPECT_EQ(refusal_of([&] { write(default_); }).code, ExitCode::cannot_create);
  write(default_, {.overwrite = true});
  EXPECT_EQ(open()->digests_from, "manifest");
}

TEST_F(CheckpointManifestTest, DigestsOfOtherTensorsAreRefused) {
  auto const checkpoint = open();
  auto digests = digest(*checkpoint, *world_);
  digests.without_codes = true;
  for (auto const& wrong : {digests, Digests()}) {
    auto const refusal = refusal_of([&] { write_manifest(*checkpoint, wrong, default_, *world_); });
    EXPECT_EQ(refusal.code, ExitCode::usage);
    EXPECT_FALSE(fs::exists(default_));
  }
}

}  // namespace
}  // namespace rankslice

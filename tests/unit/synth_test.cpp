#include "synth/synth.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <stop_token>
#include <string>
#include <tuple>
#include <vector>

#include "rankslice/checkpoint.hpp"
#include "rankslice/error.hpp"

#include "support/failing_syscall.hpp"
#include "support/temp_dir.hpp"

namespace rankslice {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

std::string contents(fs::path const& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::map<std::string, std::string> all_files(fs::path const& folder) {
  std::map<std::string, std::string> files;
  for (auto const& entry : fs::directory_iterator(folder)) files[entry.path().filename()] = contents(entry.path());
  return files;
}

bool is_weights(std::string const& name) { return name.ends_with(".safetensors"); }

std::size_t header_size(std::string const& file) {
  std::uint64_t json_size = 0;
  std::memcpy(&json_size, file.data(), sizeof json_size);
  return sizeof json_size + json_size;
}

json header_of(std::string const& file) { return json::parse(file.substr(8, header_size(file) - 8)); }

struct StoredTensor {
  std::string file, dtype;
  std::vector<std::uint64_t> shape;
  std::string bytes;
};

std::map<std::string, StoredTensor> tensors_in(std::map<std::string, std::string> const& files) {
  std::map<std::string, StoredTensor> tensors;
  for (auto const& [name, file] : files) {
    if (!is_weights(name)) continue;
    auto const header = header_of(file);
    for (auto const& [key, entry] : header.items()) {
      if (key == "__metadata__") continue;
      auto const begin = entry["data_offsets"][0].get<std::size_t>(), end = entry["data_offsets"][1].get<std::size_t>();
      tensors[key] = {name, entry["dtype"], entry["shape"], file.substr(header_size(file) + begin, end - begin)};
    }
  }
  return tensors;
}

// The definition in values.hpp, one element at a time.
std::uint64_t mixed(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

std::string expected_bytes(std::uint64_t seed, std::string const& name, std::string const& dtype, std::size_t size) {
  std::uint64_t hash = 0xcbf29ce484222325;
  for (auto const character : name) hash = (hash ^ static_cast<unsigned char>(character)) * 0x100000001b3;
  auto const key = mixed(hash ^ mixed(seed));
  auto const positive = name.ends_with("A_log");
  std::uint64_t const width = dtype == "BF16" ? 2 : 4;
  std::uint64_t const keep = width == 2 ? 0x83ff : positive ? 0x00ffffff : 0x83ffffff;
  std::uint64_t const base = width == 2 ? 0x3b80 : positive ? 0x3f000000 : 0x3b800000;
  std::string bytes(size, '\0');
  for (std::size_t at = 0; at < size; at += width) {
    auto const word = mixed(key + at / 8 * 0x9e3779b97f4a7c15);
    auto const element = ((word >> (at % 8 * 8)) & keep) + base;
    std::memcpy(bytes.data() + at, &element, width);
  }
  return bytes;
}

/// One tiny checkpoint for all tests that only look.
class TinyCheckpoint : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = std::make_unique<test::TempDir>();
    report_ = synthesize(folder_->file("tiny"), {.seed = 5});
    files_ = all_files(folder_->file("tiny"));
    tensors_ = tensors_in(files_);
  }
  static void TearDownTestSuite() { folder_.reset(); }

  inline static std::unique_ptr<test::TempDir> folder_;
  inline static SynthReport report_;
  inline static std::map<std::string, std::string> files_;
  inline static std::map<std::string, StoredTensor> tensors_;
};

TEST_F(TinyCheckpoint, IsOfSeveralFilesAndAtMost64MB) {
  std::size_t weights = 0, bytes = 0;
  for (auto const& [name, file] : files_) {
    weights += is_weights(name) ? 1U : 0U;
    bytes += file.size();
  }
  EXPECT_GE(weights, 3U);
  EXPECT_EQ(report_.files, weights);
  EXPECT_LE(bytes, 64'000'000U);
}

TEST_F(TinyCheckpoint, HasAnIndexOfAllTensors) {
  auto const index = json::parse(files_.at("model.safetensors.index.json"));
  std::size_t bytes = 0;
  for (auto const& [name, tensor] : tensors_) {
    EXPECT_EQ(index["weight_map"].value(name, ""), tensor.file) << name;
    bytes += tensor.bytes.size();
  }
  EXPECT_EQ(index["weight_map"].size(), tensors_.size());
  EXPECT_EQ(index["metadata"], json({{"total_size", bytes}}));
  EXPECT_EQ(report_.tensors, tensors_.size());
  EXPECT_EQ(report_.bytes, bytes);
}

TEST_F(TinyCheckpoint, HasFilesAsTheReferenceWriterMakesThem) {
  for (auto const& [name, file] : files_) {
    if (!is_weights(name)) continue;
    auto header = header_of(file);
    EXPECT_EQ(header["__metadata__"], json({{"format", "pt"}})) << name;
    EXPECT_EQ(header_size(file) % 8, 0U) << name;
    header.erase("__metadata__");
    std::set<std::tuple<bool, std::string>> by_dtype_and_name;
    for (auto const& [key, entry] : header.items()) by_dtype_and_name.emplace(entry["dtype"] != "F32", key);
    std::size_t end = 0;
    for (auto const& [is_narrow, key] : by_dtype_and_name) {
      EXPECT_EQ(header[key]["data_offsets"][0], end) << key;
      end = header[key]["data_offsets"][1];
    }
    EXPECT_EQ(file.size(), header_size(file) + end) << name;
  }
}

TEST_F(TinyCheckpoint, HasTheExpertsThatItsConfigSays) {
  auto const text = json::parse(files_.at("config.json"))["text_config"];
  auto const experts = text["num_experts"].get<std::uint64_t>(), hidden = text["hidden_size"].get<std::uint64_t>();
  auto const intermediate = text["moe_intermediate_size"].get<std::uint64_t>();
  EXPECT_EQ(experts, 8U);
  for (std::string const layer : {"model.language_model.layers.0", "model.language_model.layers.3", "mtp.layers.0"}) {
    EXPECT_EQ(tensors_.at(layer + ".mlp.experts.gate_up_proj").shape, (std::vector{experts, 2 * intermediate, hidden}));
    EXPECT_EQ(tensors_.at(layer + ".mlp.experts.down_proj").shape, (std::vector{experts, hidden, intermediate}));
  }
}

TEST_F(TinyCheckpoint, OpensAsACheckpointOfItsFamilyWithoutWarnings) {
  auto const checkpoint = open_checkpoint(folder_->file("tiny"));
  EXPECT_EQ(checkpoint->family, "qwen3_5_moe");
  EXPECT_EQ(checkpoint->model.parameters.size(), tensors_.size());
  EXPECT_THAT(checkpoint->warnings, testing::IsEmpty());
  EXPECT_THAT(checkpoint->hf.left_out, testing::IsEmpty());
  EXPECT_EQ(checkpoint->hf.side_files.size(), 11U);
}

TEST_F(TinyCheckpoint, HoldsInEachElementTheHashOfSeedNameAndIndex) {
  for (auto const& [name, tensor] : tensors_) {
    EXPECT_TRUE(tensor.bytes == expected_bytes(5, name, tensor.dtype, tensor.bytes.size())) << name;
  }
}

// Rule 57: A_log and linear_attn.norm.weight are F32 on the Hub, dt_bias and all others BF16.
TEST_F(TinyCheckpoint, HasF32WhereTheHubHasIt) {
  for (auto const& [name, tensor] : tensors_) {
    auto const wide = name.ends_with(".linear_attn.A_log") || name.ends_with(".linear_attn.norm.weight");
    EXPECT_EQ(tensor.dtype, wide ? "F32" : "BF16") << name;
  }
}

TEST_F(TinyCheckpoint, IsTheSameForTheSameSeed) {
  test::TempDir folder;
  synthesize(folder.file("again"), {.seed = 5});
  EXPECT_TRUE(all_files(folder.file("again")) == files_);
}

TEST_F(TinyCheckpoint, DiffersInEveryTensorAndInNothingElseForAnotherSeed) {
  test::TempDir folder;
  synthesize(folder.file("other"), {.seed = 6});
  auto const other = all_files(folder.file("other"));
  for (auto const& [name, file] : files_) {
    auto const same = is_weights(name) ? header_size(file) : file.size();
    EXPECT_EQ(other.at(name).substr(0, same), file.substr(0, same)) << name;
  }
  for (auto const& [name, tensor] : tensors_in(other)) EXPECT_FALSE(tensor.bytes == tensors_.at(name).bytes) << name;
}

TEST_F(TinyCheckpoint, KeepsTheValuesOfWhatIsLeftWhenLayersAndExpertsAreCut) {
  test::TempDir folder;
  synthesize(folder.file("cut"), {.seed = 5, .layers = 2, .experts = 3});
  auto const files = all_files(folder.file("cut"));
  auto const cut = tensors_in(files);
  for (auto const& [name, tensor] : cut) {
    EXPECT_TRUE(tensors_.at(name).bytes.starts_with(tensor.bytes)) << name;
  }
  EXPECT_TRUE(cut.contains("model.language_model.layers.1.mlp.gate.weight"));
  EXPECT_FALSE(cut.contains("model.language_model.layers.2.mlp.gate.weight"));
  EXPECT_EQ(cut.at("mtp.layers.0.mlp.experts.down_proj").shape[0], 3U);
  auto const text = json::parse(files.at("config.json"))["text_config"];
  EXPECT_EQ(text["num_experts"], 3);
  EXPECT_EQ(text["layer_types"], json({"linear_attention", "linear_attention"}));
}

TEST_F(TinyCheckpoint, AsHeadersOnlyHasTheSameSizesAndHeadersOverHoles) {
  test::TempDir folder;
  synthesize(folder.file("sparse"), {.seed = 5, .headers_only = true});
  for (auto const& [name, file] : files_) {
    auto const path = folder.path() / "sparse" / name;
    ASSERT_EQ(fs::file_size(path), file.size()) << name;
    if (!is_weights(name)) continue;
    auto const sparse = contents(path);
    EXPECT_EQ(sparse.substr(0, header_size(file)), file.substr(0, header_size(file))) << name;
    EXPECT_EQ(sparse.find_first_not_of('\0', header_size(file)), std::string::npos) << name;
    struct stat status {};
    ASSERT_EQ(::stat(path.c_str(), &status), 0);
    EXPECT_LE(status.st_blocks * 512, 64 << 10) << name;
  }
}

std::uint64_t blocks_of(fs::path const& folder) {
  std::uint64_t blocks = 0;
  for (auto const& entry : fs::directory_iterator(folder)) {
    struct stat status {};
    EXPECT_EQ(::stat(entry.path().c_str(), &status), 0) << entry.path();
    blocks += static_cast<std::uint64_t>(status.st_blocks);
  }
  return blocks;
}

TEST(Synthesize, MakesModelsLargerThanTheDiskAsHeadersOnly) {
  test::TempDir folder;
  auto const report =
      synthesize(folder.file("397b"), {.family = "auto", .preset = "qwen3.5-397b-a17b", .headers_only = true});
  EXPECT_EQ(report.family, "qwen3_5_moe");
  EXPECT_EQ(report.bytes, 806'795'875'168U);
  std::uint64_t bytes = 0;
  for (auto const& entry : fs::directory_iterator(folder.file("397b"))) bytes += entry.file_size();
  EXPECT_GT(bytes, report.bytes);
  EXPECT_LE(blocks_of(folder.file("397b")) * 512, 4U << 20U);
}

/// What comes of making 2 GB as headers only while a system call fails, or with a limit on the size of files.
std::optional<std::string> outcome_as_headers_only(std::string const& out, long failing,
                                                   std::optional<::rlim_t> largest_file = {}) {
  return test::outcome_with_failing(failing, EPERM, [&] {
    if (largest_file) {
      std::signal(SIGXFSZ, SIG_IGN);
      ::rlimit const limit{.rlim_cur = *largest_file, .rlim_max = *largest_file};
      ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
    }
    synthesize(out, {.preset = "small", .headers_only = true});
  });
}

TEST(Synthesize, ReservesNoBlocksForHeadersOnly) {
  test::TempDir folder;
  auto const outcome = outcome_as_headers_only(folder.file("out"), SYS_fallocate);
  if (!outcome) GTEST_SKIP() << "system calls cannot be filtered here";
  EXPECT_EQ(*outcome, "done");
}

TEST(Synthesize, RefusesFilesThatTheFileSystemCannotHoldAndLeavesNothing) {
  test::TempDir folder;
  auto const outcome = outcome_as_headers_only(folder.file("out"), SYS_getppid, 1'000'000);
  if (!outcome) GTEST_SKIP() << "system calls cannot be filtered here";
  EXPECT_THAT(*outcome, testing::AllOf(testing::StartsWith("73 "), HasSubstr("model-00001-of-00006.safetensors"),
                                       HasSubstr("bytes cannot be here"), HasSubstr("File too large")));
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

TEST(Synthesize, WritesNoIndexBesideASingleFile) {
  test::TempDir folder;
  synthesize(folder.file("out"),
             {.family = "auto", .preset = "qwen3-vl-30b-a3b", .layers = 1, .experts = 1, .headers_only = true});
  EXPECT_TRUE(fs::exists(folder.path() / "out" / "model.safetensors"));
  EXPECT_FALSE(fs::exists(folder.path() / "out" / "model.safetensors.index.json"));
}

TEST(Synthesize, MakesNothingInADryRun) {
  test::TempDir folder;
  auto const report =
      synthesize(folder.file("out"), {.family = "auto", .preset = "qwen3-vl-235b-a22b", .dry_run = true});
  EXPECT_EQ(report.family, "qwen3_vl_moe");
  EXPECT_EQ(report.tensors, 1388U);
  EXPECT_EQ(report.bytes, 471'340'045'792U);
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

std::string usage_error(SynthOptions const& options) {
  test::TempDir folder;
  try {
    synthesize(folder.file("out"), options);
  } catch (UsageError const& error) {
    EXPECT_TRUE(fs::is_empty(folder.path()));
    return error.what();
  }
  return "no error";
}

TEST(Synthesize, RefusesWhatItDoesNotKnowAndSaysWhatThereIs) {
  EXPECT_THAT(usage_error({.preset = "huge"}), testing::AllOf(HasSubstr("'huge'"), HasSubstr("tiny, small")));
  EXPECT_THAT(usage_error({.family = "gpt2"}), testing::AllOf(HasSubstr("'gpt2'"), HasSubstr("qwen3_5_moe")));
}

TEST(Synthesize, RefusesMtpExpertsWhereThereIsNoMtpBlock) {
  EXPECT_THAT(usage_error({.family = "qwen3_vl_moe", .mtp_experts = ExpertForm::split}), HasSubstr("qwen3_vl_moe"));
  EXPECT_THAT(usage_error({.layout = SynthLayout::transformers, .mtp_experts = ExpertForm::grouped}),
              HasSubstr("transformers writes no MTP block"));
}

TEST(Synthesize, RefusesFormsOfExpertsThatAFamilyDoesNotHave) {
  EXPECT_THAT(usage_error({.family = "qwen3_next", .mtp_experts = ExpertForm::grouped}), HasSubstr("have them split"));
  EXPECT_THAT(usage_error({.family = "qwen3_moe", .decoder_experts = ExpertForm::grouped}),
              HasSubstr("have them split"));
  EXPECT_THAT(usage_error({.family = "qwen3_vl_moe", .decoder_experts = ExpertForm::split}),
              HasSubstr("have them grouped"));
}

TEST(Synthesize, RefusesFp8WhereThereIsNone) {
  EXPECT_THAT(usage_error({.quantization = SynthQuantization::fp8, .decoder_experts = ExpertForm::grouped}),
              HasSubstr("with quantization fp8, those of family qwen3_5_moe are split"));
  EXPECT_THAT(usage_error({.layout = SynthLayout::transformers, .quantization = SynthQuantization::fp8}),
              HasSubstr("not of what transformers writes"));
}

TEST(Synthesize, RefusesTextModelsOfFamiliesWithoutThem) {
  EXPECT_THAT(usage_error({.family = "qwen3_vl_moe", .text_only = true}), HasSubstr("qwen3_vl_moe"));
  EXPECT_THAT(usage_error({.family = "qwen3_next", .text_only = true}), HasSubstr("qwen3_next are"));
}

TEST(Synthesize, RefusesCountsThatMakeNoModel) {
  EXPECT_THAT(usage_error({.layers = 0}), HasSubstr("layers"));
  EXPECT_THAT(usage_error({.experts = 0}), HasSubstr("experts"));
  EXPECT_THAT(usage_error({.layers = 1025}), HasSubstr("1024"));
  EXPECT_THAT(usage_error({.experts = ~std::uint64_t{0}}), HasSubstr("65536"));
}

TEST(Synthesize, ReplacesAnExistingCheckpointOnlyWhenToldTo) {
  test::TempDir folder;
  auto const out = folder.file("out");
  synthesize(out, {.seed = 1});
  auto const first = all_files(out);
  try {
    synthesize(out, {.seed = 2});
    FAIL() << "an existing folder was replaced";
  } catch (IoError const& error) {
    EXPECT_EQ(error.code, ExitCode::cannot_create);
  }
  EXPECT_TRUE(all_files(out) == first);
  synthesize(out, {.seed = 2, .overwrite = true});
  EXPECT_FALSE(all_files(out) == first);
}

TEST(Synthesize, StopsOnRequestAndLeavesNothing) {
  test::TempDir folder;
  std::stop_source stop;
  std::uint64_t done = 0;
  CallOptions const call{.progress =
                             [&](Progress const& progress) {
                               done = progress.done;
                               if (progress.done > progress.total / 2) stop.request_stop();
                             },
                         .stop = stop.get_token()};
  EXPECT_THROW(synthesize(folder.file("out"), {.call = call}), Interrupted);
  EXPECT_GT(done, 0U);
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

TEST(Synthesize, ReportsProgressUpToTheLastByte) {
  test::TempDir folder;
  std::uint64_t done = 0, total = 0;
  CallOptions const call{.progress =
                             [&](Progress const& progress) {
                               EXPECT_EQ(progress.phase, "synth");
                               EXPECT_GT(progress.done, done);
                               done = progress.done;
                               total = progress.total;
                             },
                         .stop = {}};
  auto const report = synthesize(folder.file("out"), {.call = call});
  EXPECT_EQ(done, report.bytes);
  EXPECT_EQ(total, report.bytes);
}

}  // namespace
}  // namespace rankslice

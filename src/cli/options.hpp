#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "rankslice/communicator.hpp"
#include "rankslice/dtype.hpp"
#include "rankslice/load.hpp"
#include "rankslice/options.hpp"

namespace rankslice::cli {

/// Everything the command line and the `RANKSLICE_…` environment can say. A command reads the fields it declares.
struct Options {
  std::string command;

  std::string input;   ///< CKPT, STORE or SHARDS_DIR
  std::string output;  ///< OUT_DIR

  std::string family = "auto";
  std::string dtype = "preserve";
  std::string expert_layout = "auto";
  bool text_only = false;
  std::string device = "auto";
  std::string comm = "auto";
  std::string verify = "full";
  std::string include, exclude;
  double timeout_s = 300;
  bool dry_run = false;
  bool json = false;
  std::string report, metrics_file, trace;
  std::string progress = "auto";
  bool quiet = false;
  int verbose = 0;
  std::string log_format = "text";
  bool overwrite = false;
  std::string resume = "on";

  std::string io = "auto", cache = "keep", hugepages = "auto";
  int threads = 0;  ///< 0: by the processors of this rank

  std::string dense = "auto";
  int ep = 0;  ///< 0: all ranks
  int ep_shard = 1;
  std::optional<int> rank, ranks;
  bool quantization = false;
  std::string store, save_shards;
  std::string against, source;
  bool gather = false;
  std::string export_layout = "auto";
  std::string gdn_dtype = "preserve";
  std::optional<std::string> write_manifest;  ///< Empty: in the input's own folder.
  std::string manifest;
  std::optional<std::string> sha256;  ///< Empty: by the folder's own list, or the names of blobs.

  std::string preset;  ///< Empty: the command's own
  std::uint64_t seed = 0;
  std::optional<std::uint64_t> layers, experts;
  std::string decoder_experts = "auto", mtp_experts = "auto";
  std::string stored_as = "none";  ///< `--quantization` of `synth`
  bool headers_only = false;

  std::string scratch;
  int repeats = 0;  ///< 0: `bench_repeats`
  bool cold = false;
  std::string compare, chart;
  std::vector<std::string> steps;  ///< Empty: all

  std::vector<std::string> paths;  ///< For `doctor` to look at.
  std::string shell;               ///< For whose completion.

  [[nodiscard]] std::chrono::milliseconds timeout() const;
  /// How often `bench` times each run: other libraries take their time.
  [[nodiscard]] int bench_repeats() const { return repeats > 0 ? repeats : compare.empty() ? 5 : 3; }
  [[nodiscard]] VerifyLevel verify_level() const;
  [[nodiscard]] bool resumes() const { return resume == "on"; }
  [[nodiscard]] DenseReading dense_reading() const;
  [[nodiscard]] ReadOptions reading() const;
  [[nodiscard]] HugePages huge_pages() const;
  /// What `--dtype` says; nothing for preserve.
  [[nodiscard]] std::optional<DType> open_dtype() const;
};

/// Prints `--help` and `--version` itself and then returns nothing.
/// @throws UsageError for words and values that no command has
[[nodiscard]] std::optional<Options> parse_options(int argc, char** argv);

/// @throws UsageError for what makes no sense together or is not in this version, DeviceError for devices and
/// communicators that this version lacks
void check_options(Options const& options);

/// Each process reads its own command line and environment: see that they ask for the same. What concerns only the
/// process that says it (its lines on stderr, where its report goes) may differ. Collective. @throws UsageError naming
/// the rank and an option.
void require_same_options(Options const& options, Communicator& world);

}  // namespace rankslice::cli

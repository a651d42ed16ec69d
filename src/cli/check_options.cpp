#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "rankslice/checkpoint.hpp"
#include "rankslice/error.hpp"

#include "cli/options.hpp"
#include "model/torch_dtype.hpp"

namespace rankslice::cli {

void check_options(Options const& o) {
  if (o.comm == "nccl" && o.rank) throw UsageError("--comm nccl: a rank-local load talks to nobody");
  if (o.device == "cuda" && o.command != "load" && o.command != "doctor") {
    throw UsageError(
        fmt::format("--device cuda: only load brings tensors to a GPU; {} moves them between files", o.command));
  }
  (void)key_selection(o.include, o.exclude);  // refuses bad patterns before any file is opened
  for (auto const& [name, value] : {std::pair("--against", o.against), std::pair("--manifest", o.manifest)}) {
    if (value.empty() || digests(o.verify_level())) continue;
    throw UsageError(fmt::format("{} {}: nothing is compared with it at --verify {}", name, value, o.verify));
  }
  if (o.write_manifest && o.verify != "full" && o.verify != "reread") {
    throw UsageError(fmt::format("--write-manifest reads every byte, which --verify {} does not", o.verify));
  }
  if (o.write_manifest && (!o.include.empty() || !o.exclude.empty() || o.text_only)) {
    throw UsageError("--write-manifest: a manifest is of a whole checkpoint, not of some of its tensors");
  }
  if (!std::isfinite(o.timeout_s)) throw UsageError(fmt::format("--timeout {}: expected seconds", o.timeout_s));
  if (o.command == "load" && o.rank.has_value() != o.ranks.has_value()) {
    throw UsageError("--rank and --ranks belong together");
  }
  if (o.rank && *o.rank >= *o.ranks) {
    throw UsageError(fmt::format("--rank {}: the ranks are 0 to {}", *o.rank, *o.ranks - 1));
  }
  if (o.command == "load" && o.rank && !o.store.empty()) {
    throw UsageError("--store needs all ranks; a rank-local load can be kept with --save-shards");
  }
  if (o.command == "load" && o.rank && o.dense == "once") {
    throw UsageError("--dense once needs all ranks, each of which reads a share; one rank alone reads all");
  }
  if (o.command == "load" && o.rank && o.verify == "coverage") {
    throw UsageError(
        "--verify coverage needs all ranks: it asks who holds what; one rank alone has off, full and reread");
  }
  if (!o.chart.empty() && o.compare.empty()) {
    throw UsageError(fmt::format("--chart {}: draws what --compare finds, and there is none", o.chart));
  }
  if (o.command == "bench" && !o.input.empty() && !o.preset.empty()) {
    throw UsageError(fmt::format("--preset {}: is for a synthetic checkpoint, and {} is given", o.preset, o.input));
  }
}

std::chrono::milliseconds Options::timeout() const {
  return std::chrono::milliseconds(std::max<std::int64_t>(1, static_cast<std::int64_t>(timeout_s * 1000)));
}

VerifyLevel Options::verify_level() const { return parse_verify_level(verify).value(); }

DenseReading Options::dense_reading() const { return parse_dense_reading(dense).value(); }

ReadOptions Options::reading() const {
  return {.backend = parse_read_backend(io).value(), .cache = parse_page_cache(cache).value()};
}

HugePages Options::huge_pages() const { return parse_huge_pages(hugepages).value(); }

std::optional<DType> Options::open_dtype() const {
  return parse_torch_dtype(dtype);  // nothing for preserve
}

}  // namespace rankslice::cli

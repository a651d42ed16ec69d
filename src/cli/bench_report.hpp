#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/bench_measure.hpp"
#include "cli/bench_steps.hpp"
#include "cli/chart.hpp"
#include "cli/job.hpp"

namespace rankslice::cli {

/// Each rank's host, processor, cores and kernel, on rank 0. Collective.
[[nodiscard]] Json describe_ranks(Communicator& world);

/// Everything that one `bench` found out. Complete on rank 0.
struct BenchReport {
  std::string checkpoint;  ///< The path; empty for a synthetic one.
  std::string preset;      ///< Of a synthetic one.
  std::string family;
  CheckpointFormat format = CheckpointFormat::huggingface;
  std::string file_system;  ///< Of the checkpoint; empty when not known.
  std::uint64_t tensors = 0, bytes = 0;
  Mesh mesh;
  std::string comm;
  int repeats = 0;
  std::string huge_pages;  ///< As `--hugepages` has them.
  std::string scratch;     ///< The folder below which it was; empty when nothing was written.
  std::string scratch_file_system;
  Json ranks;  ///< `describe_ranks`
  std::vector<StepResult> steps;
  std::vector<OtherLoader> loaders;  ///< That were compared.
};

/// The document `rankslice.bench/1`, less how the run ended.
[[nodiscard]] Json to_json(BenchReport const& report);

/// The steps that compare with other libraries, as a chart.
[[nodiscard]] BarChart to_chart(BenchReport const& report, std::string const& command);

/// The table for people, and what its lines mean.
[[nodiscard]] std::string to_text(BenchReport const& report);

}  // namespace rankslice::cli

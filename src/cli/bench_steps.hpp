#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "rankslice/checkpoint.hpp"
#include "rankslice/communicator.hpp"
#include "rankslice/load.hpp"
#include "rankslice/mesh.hpp"
#include "rankslice/options.hpp"
#include "rankslice/state_dict.hpp"

#include "cli/bench_limits.hpp"
#include "cli/bench_measure.hpp"
#include "cli/plain_collectives.hpp"
#include "cli/python_process.hpp"

namespace rankslice::cli {

/// Another library that loads checkpoints, as compare.py calls it, in a process of its own.
struct OtherLoader {
  std::string way, version;
  std::shared_ptr<PythonProcess> python{};
};

/// What `--compare` needs.
struct LoaderComparison {
  std::string python;
  std::chrono::milliseconds patience{};                       ///< For each line that it says.
  std::function<std::shared_ptr<Checkpoint const>()> open{};  ///< Collective.
  std::vector<OtherLoader> loaders{};
};

/// What is measured, and where.
struct BenchSubject {
  Communicator& world;
  CallOptions call;  ///< Its threads are those of the limits, too.
  HugePages huge_pages = HugePages::automatic;
  Alive alive;
  PlainCollectives* plain_mpi = nullptr;  ///< Null without MPI.
  LoaderComparison comparison{};
  std::shared_ptr<Checkpoint const> checkpoint{};
  Mesh mesh{};
  std::vector<Extent> extents{};                ///< That this rank owns.
  std::shared_ptr<PlainReader const> plain{};   ///< Of them.
  std::shared_ptr<PlainReader const> direct{};  ///< The same past the page cache; null where a rank cannot do that.
  bool has_uring = false;                       ///< On every rank.
  std::uint64_t owned_bytes = 0;                ///< In the native form.
  std::string scratch{};                        ///< Folder for the steps that write.
  StateDict held{};                             ///< Of the steps that do not load.
};

/// What can be measured, and what has to be there for it.
struct BenchStep {
  std::string_view name;
  bool writes = false;
  bool uses_held = false;
  bool is_cold = false;      ///< Only measured where it is asked for.
  bool needs_peers = false;  ///< Left out on one rank.
  /// Local. The subject outlives the result.
  Step (*make)(BenchSubject&) = nullptr;
};

/// A run that loads, and the plain reading of the same extents into fresh memory.
[[nodiscard]] Run load_run(BenchSubject& subject, std::string name, std::string meaning, LoadOptions options,
                           bool verifies = false);
[[nodiscard]] Run read_run(BenchSubject& subject, std::shared_ptr<PlainReader const> plain, std::string name,
                           std::string meaning, Buffer (*allocate)(std::uint64_t));

/// Every run begins with files that the page cache has forgotten. What it has kept all the same is looked at.
void make_cold(BenchSubject const& subject, Step& step);

/// By the order in which they run.
[[nodiscard]] std::span<BenchStep const> bench_steps();

// The steps by themselves, in bench_pipeline.cpp …
[[nodiscard]] Step load_step(BenchSubject& subject);
[[nodiscard]] Step verify_step(BenchSubject& subject);
[[nodiscard]] Step store_step(BenchSubject& subject);
[[nodiscard]] Step to_hf_step(BenchSubject& subject);
[[nodiscard]] Step gather_step(BenchSubject& subject);
// … bench_kernels.cpp …
[[nodiscard]] Step transpose_step(BenchSubject& subject);
[[nodiscard]] Step digest_step(BenchSubject& subject);
// … bench_cold.cpp …
[[nodiscard]] Step cold_step(BenchSubject& subject);
[[nodiscard]] Step read_step(BenchSubject& subject);
[[nodiscard]] Step read_cold_step(BenchSubject& subject);
// … and bench_scale.cpp.
[[nodiscard]] Step plan_step(BenchSubject& subject);
[[nodiscard]] Step collectives_step(BenchSubject& subject);

}  // namespace rankslice::cli

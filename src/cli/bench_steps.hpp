#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "rankslice/checkpoint.hpp"
#include "rankslice/communicator.hpp"
#include "rankslice/mesh.hpp"
#include "rankslice/options.hpp"
#include "rankslice/state_dict.hpp"

#include "cli/bench_limits.hpp"
#include "cli/bench_measure.hpp"

namespace rankslice::cli {

/// What is measured, and where.
struct BenchSubject {
  Communicator& world;
  CallOptions call;
  Alive alive;
  std::shared_ptr<Checkpoint const> checkpoint{};
  Mesh mesh{};
  std::unique_ptr<PlainReader> plain{};  ///< Of the extents that this rank owns.
  std::uint64_t owned_bytes = 0;         ///< In the native form.
  std::string scratch{};                 ///< Folder for the steps that write.
  StateDict held{};                      ///< Of the steps that do not load.
};

/// What can be measured, and what has to be there for it.
struct BenchStep {
  std::string_view name;
  bool writes = false;
  bool uses_held = false;
  /// Local. The subject outlives the result.
  Step (*make)(BenchSubject&) = nullptr;
};

/// By the order in which they run.
[[nodiscard]] std::span<BenchStep const> bench_steps();

// The steps by themselves, in bench_pipeline.cpp …
[[nodiscard]] Step load_step(BenchSubject& subject);
[[nodiscard]] Step verify_step(BenchSubject& subject);
[[nodiscard]] Step store_step(BenchSubject& subject);
[[nodiscard]] Step to_hf_step(BenchSubject& subject);
[[nodiscard]] Step gather_step(BenchSubject& subject);
// … and bench_kernels.cpp.
[[nodiscard]] Step transpose_step(BenchSubject& subject);
[[nodiscard]] Step digest_step(BenchSubject& subject);

}  // namespace rankslice::cli

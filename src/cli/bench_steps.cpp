#include "cli/bench_steps.hpp"

#include <array>

namespace rankslice::cli {

std::span<BenchStep const> bench_steps() {
  static constexpr std::array kSteps{
      BenchStep{.name = "load", .make = load_step},
      BenchStep{.name = "read", .make = read_step},
      BenchStep{.name = "verify", .uses_held = true, .make = verify_step},
      BenchStep{.name = "store", .writes = true, .uses_held = true, .make = store_step},
      BenchStep{.name = "to-hf", .writes = true, .uses_held = true, .make = to_hf_step},
      BenchStep{.name = "gather", .uses_held = true, .make = gather_step},
      BenchStep{.name = "transpose", .uses_held = true, .make = transpose_step},
      BenchStep{.name = "digest", .uses_held = true, .make = digest_step},
      BenchStep{.name = "plan", .make = plan_step},
      BenchStep{.name = "collectives", .needs_peers = true, .make = collectives_step},
      BenchStep{.name = "cold", .is_cold = true, .make = cold_step},
      BenchStep{.name = "read-cold", .is_cold = true, .make = read_cold_step},
  };
  return kSteps;
}

}  // namespace rankslice::cli

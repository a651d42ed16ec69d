#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "facts/timeline.hpp"
#include "facts/words.hpp"

namespace rankslice {

/// What the metrics tell of a run that goes on, or has ended.
struct RunFacts {
  int rank = 0;                    ///< Who tells it.
  double started_s = 0;            ///< Since 1970.
  double progress_s = 0;           ///< When this rank last got on, since 1970.
  std::optional<int> exit_code{};  ///< Once it has ended.
  std::string phase{};             ///< Which is under way, or where it failed.
  Progress progress{};             ///< The bytes of its blocks.
};

/// In the text format of Prometheus. All are gauges, of one run. Pure.
[[nodiscard]] std::string metrics_text(Json const& report, RunFacts const& facts);

}  // namespace rankslice

#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

namespace rankslice {

struct Progress {
  std::string_view phase;  ///< "load", "verify", "store", "to_hf"
  std::uint64_t done = 0;  ///< Bytes of this rank.
  std::uint64_t total = 0;
};

/// How much is proved; each level includes the ones before it.
enum class VerifyLevel : std::uint8_t {
  off,
  coverage,  ///< Every rank has the same keys, shapes and dtypes; the slices tile each tensor.
  full,      ///< … and what was read is what is held, and is the reference where there is one.
  reread,    ///< … and another rank reads the same when it reads the same bytes again.
};

/// "off", "coverage", "full", "reread"
[[nodiscard]] std::string_view name(VerifyLevel level);
/// The inverse of `name`; nothing for an unknown one.
[[nodiscard]] std::optional<VerifyLevel> parse_verify_level(std::string_view name);
/// Whether a level needs the digests of what is read while loading.
[[nodiscard]] constexpr bool digests(VerifyLevel level) { return level >= VerifyLevel::full; }

/// What people should hear of while a call goes on.
struct Notice {
  bool warning = false;
  std::string text;
};

/// What every long call accepts.
struct CallOptions {
  std::function<void(Progress const&)>
      progress{};  ///< Called on the caller's thread after every block; what it throws ends the call on every rank.
  std::stop_token stop{};                       ///< When it fires the call throws `Interrupted` on every rank.
  std::function<void(Notice const&)> notice{};  ///< Called on rank 0, on the caller's thread.
};

/// What an output that went on where an earlier run was stopped took over from it.
struct Resumed {
  std::uint64_t segments = 0;  ///< Files, or pieces of one, that were whole, and were read back again.
  std::uint64_t of = 0;        ///< All segments of the output.
  std::uint64_t bytes = 0;     ///< Tensor bytes of those that were taken over.
};

}  // namespace rankslice

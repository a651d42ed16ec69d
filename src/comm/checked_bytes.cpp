#include "comm/checked_bytes.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/fingerprint.hpp"

namespace rankslice {
namespace {

constexpr std::size_t kChecksumBytes = 32;

std::vector<std::byte> checksum_of(std::span<std::byte const> bytes) {
  auto const hex = xxh3_128(bytes);
  auto const text = std::as_bytes(std::span(hex));
  return {text.begin(), text.end()};
}

}  // namespace

void add_checksum(std::vector<std::byte>& bytes) {
  auto const checksum = checksum_of(bytes);
  bytes.insert(bytes.end(), checksum.begin(), checksum.end());
}

void remove_checksum(std::vector<std::byte>& bytes, std::string const& sender) {
  if (bytes.size() >= kChecksumBytes) {
    auto const came = std::span(bytes).last(kChecksumBytes);
    auto const made = checksum_of(std::span(bytes).first(bytes.size() - kChecksumBytes));
    if (std::equal(made.begin(), made.end(), came.begin())) {
      bytes.resize(bytes.size() - kChecksumBytes);
      return;
    }
  }
  throw VerifyError(
      fmt::format("{} bytes from {} were damaged on their way: their checksum is another one", bytes.size(), sender));
}

std::vector<std::vector<std::byte>> gather_checked(Communicator& world, std::vector<std::byte> bytes, int root) {
  on_every_rank(world, [&] { add_checksum(bytes); });
  auto everyone = world.gather(bytes, root);
  on_every_rank(world, [&] {
    for (std::size_t rank = 0; rank < everyone.size(); ++rank) {
      remove_checksum(everyone[rank], fmt::format("rank {}", rank));
    }
  });
  return everyone;
}

bool all_say(Communicator& world, bool so) {
  Outcome mine;
  if (!so) mine.code = ExitCode::difference;
  return world.agree(mine).code == ExitCode::done;
}

}  // namespace rankslice

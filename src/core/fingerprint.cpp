#include "core/fingerprint.hpp"

#include <fmt/format.h>

#define XXH_INLINE_ALL  // makes the state a complete type
#include <xxhash.h>

namespace rankslice {

namespace {

std::string to_hex(XXH128_hash_t hash) { return fmt::format("{:016x}{:016x}", hash.high64, hash.low64); }

}  // namespace

struct Xxh3Stream::State {
  XXH3_state_t xxh3;
};

Xxh3Stream::Xxh3Stream() : state_(std::make_unique<State>()) { XXH3_128bits_reset(&state_->xxh3); }
Xxh3Stream::~Xxh3Stream() = default;
Xxh3Stream::Xxh3Stream(Xxh3Stream&&) noexcept = default;
Xxh3Stream& Xxh3Stream::operator=(Xxh3Stream&&) noexcept = default;

void Xxh3Stream::add(std::span<std::byte const> bytes) {
  XXH3_128bits_update(&state_->xxh3, bytes.data(), bytes.size());
}

std::string Xxh3Stream::hex() const { return to_hex(XXH3_128bits_digest(&state_->xxh3)); }

std::string xxh3_128(std::span<std::byte const> bytes) { return to_hex(XXH3_128bits(bytes.data(), bytes.size())); }

}  // namespace rankslice

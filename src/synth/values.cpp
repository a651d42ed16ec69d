#include "synth/values.hpp"

#include <bit>
#include <cstring>
#include <string>

#include "rankslice/error.hpp"

namespace rankslice {

namespace {

static_assert(std::endian::native == std::endian::little, "words are stored as they lie in memory");

constexpr std::uint64_t kStep = 0x9e3779b97f4a7c15;

constexpr std::uint64_t mix(std::uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9;
  x ^= x >> 27;
  x *= 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

std::uint64_t fnv1a(std::string_view text) {
  std::uint64_t hash = 0xcbf29ce484222325;
  for (auto const character : text) hash = (hash ^ static_cast<unsigned char>(character)) * 0x100000001b3;
  return hash;
}

constexpr std::uint64_t in_lanes_of_16(std::uint64_t lane) { return lane * 0x0001000100010001; }
constexpr std::uint64_t in_lanes_of_32(std::uint64_t lane) { return lane * 0x0000000100000001; }

}  // namespace

SyntheticValues::SyntheticValues(std::uint64_t seed, std::string_view name, DType dtype)
    : key_(mix(fnv1a(name) ^ mix(seed))) {
  if (dtype == DType::BF16) {
    keep_ = in_lanes_of_16(0x83ff);
    base_ = in_lanes_of_16(0x3b80);
  } else if (dtype == DType::F32 && name.ends_with("A_log")) {
    keep_ = in_lanes_of_32(0x00ffffff);
    base_ = in_lanes_of_32(0x3f000000);
  } else if (dtype == DType::F32) {
    keep_ = in_lanes_of_32(0x83ffffff);
    base_ = in_lanes_of_32(0x3b800000);
  } else {
    throw UsageError("no synthetic values for " + std::string(rankslice::name(dtype)) + " (tensor " +
                     std::string(name) + "): BF16 and F32 have them");
  }
}

void SyntheticValues::fill(std::uint64_t first_byte, std::span<std::byte> out) const {
  auto const word = [this](std::uint64_t i) { return (mix(key_ + i * kStep) & keep_) + base_; };
  auto const first = first_byte / sizeof(std::uint64_t);
  auto const whole = out.size() / sizeof(std::uint64_t);
  for (std::uint64_t i = 0; i < whole; ++i) {
    auto const value = word(first + i);
    std::memcpy(out.data() + i * sizeof value, &value, sizeof value);
  }
  auto const rest = out.subspan(whole * sizeof(std::uint64_t));
  auto const last = word(first + whole);
  std::memcpy(rest.data(), &last, rest.size());
}

}  // namespace rankslice

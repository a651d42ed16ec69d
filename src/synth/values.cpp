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

constexpr std::uint64_t in_lanes_of_8(std::uint64_t lane) { return lane * 0x0101010101010101; }
constexpr std::uint64_t in_lanes_of_16(std::uint64_t lane) { return lane * 0x0001000100010001; }
constexpr std::uint64_t in_lanes_of_32(std::uint64_t lane) { return lane * 0x0000000100000001; }

/// One less in every lane of 8 bits that is 0x7f or 0xff.
constexpr std::uint64_t without_nans(std::uint64_t codes) {
  auto const carries = (codes & in_lanes_of_8(0x7f)) + in_lanes_of_8(0x01);  // into bit 7, from 0x7f alone
  return codes - ((carries >> 7) & in_lanes_of_8(0x01));
}

template <typename Word>
void fill_words(Word const& word, std::uint64_t first, std::span<std::byte> out) {
  auto const whole = out.size() / sizeof(std::uint64_t);
  for (std::uint64_t i = 0; i < whole; ++i) {
    auto const value = word(first + i);
    std::memcpy(out.data() + i * sizeof value, &value, sizeof value);
  }
  auto const rest = out.subspan(whole * sizeof(std::uint64_t));
  auto const last = word(first + whole);
  std::memcpy(rest.data(), &last, rest.size());
}

}  // namespace

SyntheticValues::SyntheticValues(std::uint64_t seed, std::string_view name, DType dtype)
    : key_(mix(fnv1a(name) ^ mix(seed))) {
  auto const scales = name.ends_with("scale_inv");
  if (dtype == DType::BF16) {
    keep_ = in_lanes_of_16(scales ? 0x00ff : 0x83ff);
    base_ = in_lanes_of_16(scales ? 0x3980 : 0x3b80);
  } else if (dtype == DType::F32) {
    auto const positive = scales || name.ends_with("A_log");
    keep_ = in_lanes_of_32(positive ? 0x00ffffff : 0x83ffffff);
    base_ = in_lanes_of_32(scales ? 0x39800000 : positive ? 0x3f000000 : 0x3b800000);
  } else if (dtype == DType::F8_E4M3) {
    keep_ = in_lanes_of_8(0xff);
    codes_ = true;
  } else {
    throw UsageError("no synthetic values for " + std::string(rankslice::name(dtype)) + " (tensor " +
                     std::string(name) + "): BF16, F32 and F8_E4M3 have them");
  }
}

void SyntheticValues::fill(std::uint64_t first_byte, std::span<std::byte> out) const {
  auto const word = [this](std::uint64_t i) { return (mix(key_ + i * kStep) & keep_) + base_; };
  auto const first = first_byte / sizeof(std::uint64_t);
  if (codes_) {
    fill_words([&](std::uint64_t i) { return without_nans(word(i)); }, first, out);
  } else {
    fill_words(word, first, out);
  }
}

}  // namespace rankslice

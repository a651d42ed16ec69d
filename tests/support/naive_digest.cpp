#include "support/naive_digest.hpp"

#include <algorithm>
#include <functional>
#include <numeric>

namespace rankslice::test {

namespace {

std::uint64_t mix64(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

std::uint64_t pi(std::uint64_t i, std::uint64_t m, std::uint64_t k) {
  constexpr std::uint64_t kModulus = std::uint64_t{1} << 31;
  auto x = (i * m + k) % kModulus;
  x ^= x >> 15;
  x = x * 0x2C1B3C6D % kModulus;
  x ^= x >> 13;
  x = x * 0x297A2D39 % kModulus;
  return x ^ (x >> 16);
}

}  // namespace

std::uint64_t a_of(std::uint64_t e) { return 2 * mix64(0x243F6A8885A308D3 + e) + 1; }
std::uint64_t fr_of(std::uint64_t r) { return 2 * pi(r, 0x5851F42D, 0x13198A2E) + 1; }
std::uint64_t fc_of(std::uint64_t c) { return 2 * pi(c, 0x4C957F2D, 0x03707344) + 1; }

std::uint64_t word_at(std::vector<std::byte> const& bytes, std::uint64_t offset, std::uint64_t size) {
  std::uint64_t word = 0;
  for (std::uint64_t i = 0; i < size; ++i) word |= std::to_integer<std::uint64_t>(bytes[offset + i]) << (8 * i);
  return word;
}

std::vector<std::uint64_t> naive_digest(std::uint64_t element_size, Shape const& shape,
                                        std::vector<std::byte> const& bytes) {
  return naive_digest(element_size, shape, bytes, {0, bytes.size() / element_size});
}

std::vector<std::uint64_t> naive_digest(std::uint64_t element_size, Shape const& shape,
                                        std::vector<std::byte> const& bytes, Range elements) {
  if (shape.size() >= 3 && std::ranges::count(shape, 0U) > 0) return {};
  std::vector<std::uint64_t> d(shape.size() >= 3 ? shape[0] : 1);
  auto const word_size = std::min<std::uint64_t>(element_size, 4);
  auto const last_axis = shape.empty() ? 1 : shape.back();
  for (auto offset = elements.begin * element_size; offset < elements.end * element_size; offset += word_size) {
    auto const element = offset / element_size;
    auto const column = element % last_axis;
    auto const c = element_size == 8 ? 2 * column + (offset % 8) / 4 : column;
    auto row = element / last_axis;
    std::uint64_t e = 0;
    if (shape.size() >= 3) {
      auto const rows = std::accumulate(shape.begin() + 1, shape.end() - 1, std::uint64_t{1}, std::multiplies<>());
      e = row / rows;
      row %= rows;
    }
    d[e] += a_of(e) * fr_of(row) * fc_of(c) * (word_at(bytes, offset, word_size) + 1);
  }
  return d;
}

}  // namespace rankslice::test

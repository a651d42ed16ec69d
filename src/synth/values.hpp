#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "rankslice/dtype.hpp"

namespace rankslice {

/// The values of one synthetic tensor: a pure function of seed, name and element index, whatever file it lies in.
///
/// Its bytes are 64-bit little-endian words, the last one cut at the tensor's end. All arithmetic is modulo 2^64:
///
///     mix(x)  = x ^= x >> 30; x *= 0xbf58476d1ce4e5b9; x ^= x >> 27; x *= 0x94d049bb133111eb; x ^ x >> 31
///     fnv(s)  = 64-bit FNV-1a of the bytes of s
///     key     = mix(fnv(name) ^ mix(seed))
///     word(i) = (mix(key + i · 0x9e3779b97f4a7c15) & keep) + base
///
/// `keep` and `base` repeat in every lane of one element, so that an element is a hash with most of its exponent fixed:
///
///     |                           | keep       | base       | values                      |
///     | BF16                      | 0x83ff     | 0x3b80     | both signs, |x| in [2^-8,1) |
///     | F32                       | 0x83ffffff | 0x3b800000 | the same                    |
///     | F32, name in `A_log`      | 0x00ffffff | 0x3f000000 | [0.5, 2)                    |
///     | BF16, name in `scale_inv` | 0x00ff     | 0x3980     | [2^-12, 2^-10)              |
///     | F32, name in `scale_inv`  | 0x00ffffff | 0x39800000 | the same                    |
///     | F8_E4M3                   | 0xff       | 0x00       | every code but the two NaNs |
///
/// A NaN of F8_E4M3 (0x7f, 0xff) becomes the code below it, ±448: with scales below 2^-10 weights stay below 0.5.
class SyntheticValues {
 public:
  /// @throws UsageError for dtypes without values.
  SyntheticValues(std::uint64_t seed, std::string_view name, DType dtype);

  /// Fill `out` with the tensor's bytes from `first_byte` on, a multiple of 8.
  void fill(std::uint64_t first_byte, std::span<std::byte> out) const;

 private:
  std::uint64_t key_, keep_ = 0, base_ = 0;
  bool codes_ = false;  ///< F8_E4M3
};

}  // namespace rankslice

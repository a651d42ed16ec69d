#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "rankslice/tensor_catalog.hpp"

namespace rankslice::test {

/// A(e), F_r(r), F_c(c) and word(…) of the definition.
[[nodiscard]] std::uint64_t a_of(std::uint64_t e);
[[nodiscard]] std::uint64_t fr_of(std::uint64_t r);
[[nodiscard]] std::uint64_t fc_of(std::uint64_t c);
[[nodiscard]] std::uint64_t word_at(std::vector<std::byte> const& bytes, std::uint64_t offset, std::uint64_t size);

/// digest/1 once more, word by word and straight from the definition: d(0), d(1), … of a whole tensor of elements of 1,
/// 2, 4 or 8 bytes in its HF form. A sub-byte tensor is {1, {number of bytes}}.
[[nodiscard]] std::vector<std::uint64_t> naive_digest(std::uint64_t element_size, Shape const& shape,
                                                      std::vector<std::byte> const& bytes);

/// … of the elements [begin, end) alone.
[[nodiscard]] std::vector<std::uint64_t> naive_digest(std::uint64_t element_size, Shape const& shape,
                                                      std::vector<std::byte> const& bytes, Range elements);

}  // namespace rankslice::test

#pragma once

#include <cstdint>

#include "support/example_parameter.hpp"
#include "support/memory_reader.hpp"
#include "transform/transfer.hpp"

namespace rankslice::test {

/// Sums of blocks that were reported, and their number.
struct Reported {
  std::uint64_t bytes = 0, blocks = 0;
  [[nodiscard]] BlockDone hook() {
    return [this](std::uint64_t size) {
      bytes += size;
      ++blocks;
    };
  }
};

/// Where the digests of one parameter go.
class Sums {
 public:
  /// `example` outlives the result.
  explicit Sums(ExampleParameter const& example) : digest_(example.model, example.parameter()), sums_(example.model) {}
  [[nodiscard]] DigestSink sink() { return {.digest = &digest_, .sums = &sums_}; }
  void expect(ExampleDigests const& expected) const;

 private:
  ParameterDigest digest_;
  Digests sums_;
};

/// Reading, digesting and writing the slice move the right bytes to the right place and nothing else, report every byte
/// that they read or write, read what the plan says, and digest by the definition. Memory holds just the slice, and
/// then more than it.
void expect_all_ways(ExampleParameter const& example, Form form, ExampleFile const& stored, Slice const& wanted);

}  // namespace rankslice::test

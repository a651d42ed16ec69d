#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "rankslice/make_state_dict.hpp"

#include "support/raw_checkpoint.hpp"

namespace rankslice::test {

/// Where a rank's part of a tensor lies.
struct Part {
  Shape offsets, shape;
};

/// All of a tensor.
[[nodiscard]] Part whole_part(Shape const& global);

/// Some part that a rank may hold: of stacked experts a box of experts and rows, of a dense tensor some of axis 0; one
/// in eight is empty.
[[nodiscard]] Part random_part(Parameter const& parameter, std::mt19937& random);

/// The parts of `ranks` ranks, which are together everything once, cut at random: stacked experts along both axes, by
/// two ranks for each run of experts; `ranks` is even.
[[nodiscard]] std::vector<Part> random_tiling(Parameter const& parameter, std::size_t ranks, std::mt19937& random);

/// Of a tensor, row-major, those bytes that are in a part.
[[nodiscard]] Bytes bytes_in(Part const& part, Bytes const& whole, Shape const& global, std::uint64_t element_size);

/// Host memory of a caller's: at an odd address, as a view may be, and full of 0xA5, also before and behind it.
class OddMemory {
 public:
  explicit OddMemory(std::uint64_t bytes);

  /// As long as this lives.
  [[nodiscard]] Buffer buffer() const;
  [[nodiscard]] Bytes bytes() const;
  /// Nothing before or behind it was written to.
  [[nodiscard]] bool surroundings_untouched() const;

 private:
  std::shared_ptr<Bytes> memory_;
};

/// What a state of some parts is made of, in memory of the caller's.
class CallersTensors {
 public:
  /// `part_of` says which part is held of a parameter; nothing: it is left out.
  template <typename PartOf>
  CallersTensors(Model const& model, PartOf const& part_of) {
    for (auto const& parameter : model.parameters) {
      if (std::optional<Part> const part = part_of(parameter)) add(parameter, *part);
    }
  }

  [[nodiscard]] std::map<std::string, LocalTensor> const& tensors() const { return tensors_; }
  [[nodiscard]] OddMemory const& memory(std::string const& fqn) const { return memories_.at(fqn); }

 private:
  void add(Parameter const& parameter, Part const& part);
  std::map<std::string, LocalTensor> tensors_;
  std::map<std::string, OddMemory> memories_;
};

}  // namespace rankslice::test

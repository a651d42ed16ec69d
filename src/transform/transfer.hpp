#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "rankslice/digest.hpp"
#include "rankslice/parameter.hpp"

#include "core/literals.hpp"
#include "io/file.hpp"
#include "transform/parameter_digest.hpp"

namespace rankslice {

/// Where one tensor lies in a file: `origin` is the offset at which its very first byte stands, or, when the file holds
/// only a later part of it, would stand (modulo 2^64). Every coordinate follows from an offset minus the origin.
struct TensorPlace {
  Form form = Form::hf;
  std::uint64_t origin = 0;
};

/// Called after every block with its bytes: progress, and the place to throw when the work is to stop.
using BlockDone = std::function<void(std::uint64_t bytes)>;

/// Where the digest of a pass goes; nothing is digested without `digest`.
struct DigestSink {
  ParameterDigest* digest = nullptr;
  Digests* sums = nullptr;
  std::size_t index = 0;

  void add(Form form, std::uint64_t first_element, std::span<std::byte const> bytes) const {
    if (digest != nullptr) digest->add(form, first_element, bytes, *sums, index);
  }
};

/// Moves parts of tensors between files and memory in cache-sized blocks: what is digested and transposed is still in
/// the cache from being read. One staging buffer, reused from block to block. Parts are in the units of
/// `Parameter::part_count`.
class Transfer {
 public:
  explicit Transfer(BlockDone done = {}) : done_(std::move(done)) {}

  /// Read a part from a file and leave it, in the native form, at `out` (`part` begins there). Digests what was read,
  /// in the coordinates of the offsets that it was read from. @throws IoError, FormatError
  void read(Parameter const& parameter, Range part, FileReader& file, TensorPlace place, std::byte* out,
            DigestSink const& sink);

  /// Write a part, held in the native form at `native`, to its place. Digests what is handed to the file. @throws
  /// IoError
  void write(Parameter const& parameter, Range part, std::byte const* native, FileWriter& file, TensorPlace place,
             DigestSink const& sink);

  /// Only digest a part of a file. @throws IoError, FormatError
  void digest(Parameter const& parameter, Range part, FileReader& file, TensorPlace place, DigestSink const& sink);

 private:
  void read_swapped(Parameter const& parameter, std::uint64_t expert, FileReader& file, TensorPlace place,
                    std::byte* out, DigestSink const& sink);
  void write_swapped(Parameter const& parameter, std::uint64_t expert, std::byte const* native, FileWriter& file,
                     TensorPlace place, DigestSink const& sink);
  std::span<std::byte> staging(std::uint64_t bytes);
  void done(std::uint64_t bytes) const {
    if (done_) done_(bytes);
  }

  BlockDone done_;
  std::vector<std::byte> staging_;
};

}  // namespace rankslice

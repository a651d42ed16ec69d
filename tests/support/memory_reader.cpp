#include "support/memory_reader.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "rankslice/error.hpp"

namespace rankslice::test {

void MemoryReader::read(std::span<std::byte> out, std::uint64_t offset) {
  reads_.push_back({offset, offset + out.size()});
  auto const end = offset + out.size();
  if (failing_ && offset <= *failing_ && *failing_ < end)
    throw IoError(ExitCode::io, fmt::format("{}: reading bytes [{}, {}): I/O error", path_, offset, end), path_);
  if (end > bytes_.size())
    throw FormatError(fmt::format("{}: reading bytes [{}, {}): the file ends at {}", path_, offset, end, bytes_.size()),
                      path_);
  std::ranges::copy(std::span(bytes_).subspan(offset, out.size()), out.begin());
}

}  // namespace rankslice::test

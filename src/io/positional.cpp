#include "io/positional.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "rankslice/error.hpp"

namespace rankslice {

void read_fully(FileReader const& file, ReadOnce const& read_once, std::span<std::byte> out, std::uint64_t offset) {
  auto const& path = file.path();
  auto const wanted = fmt::format("[{}, {})", offset, offset + out.size());
  while (!out.empty()) {
    auto const got = uninterrupted([&] { return read_once(out.data(), std::min(out.size(), kMostPerCall), offset); });
    if (got < 0) {
      auto const why = reason(errno);
      throw IoError(ExitCode::io, fmt::format("{}: reading bytes {} failed at {}: {}", path, wanted, offset, why),
                    path);
    }
    if (got == 0) {
      auto const end = std::min(offset, file.identity().size);
      throw FormatError(fmt::format("{}: ends at byte {}, wanted {}", path, end, wanted), path);
    }
    out = out.subspan(static_cast<std::size_t>(got));
    offset += static_cast<std::uint64_t>(got);
  }
}

std::string reason(int error) { return std::generic_category().message(error); }

}  // namespace rankslice

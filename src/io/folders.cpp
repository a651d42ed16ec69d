#include "io/folders.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <string_view>

#include "rankslice/error.hpp"

#include "io/file.hpp"
#include "io/positional.hpp"

namespace rankslice {

namespace {

[[noreturn]] void fail(std::string const& path, std::string_view call) {
  throw IoError(ExitCode::io, fmt::format("{}: {} failed: {}", path, call, reason(errno)), path);
}

}  // namespace

std::string parent_of(std::string const& path) {
  auto const parent = std::filesystem::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

void sync_directory(std::string const& path) {
  UniqueFd const fd(uninterrupted([&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
  if (!fd.valid()) fail(path, "open");
  // Some file systems have no fsync for directories and say EINVAL: their names are safe without it, or never.
  if (uninterrupted([&] { return ::fsync(fd.get()); }) != 0 && errno != EINVAL) fail(path, "fsync");
}

}  // namespace rankslice

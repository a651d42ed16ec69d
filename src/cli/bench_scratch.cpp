#include "cli/bench_scratch.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "rankslice/error.hpp"

#include "facts/words.hpp"
#include "io/file.hpp"
#include "io/positional.hpp"

namespace rankslice::cli {

namespace fs = std::filesystem;

namespace {

constexpr auto kPrefix = "rankslice-bench-";

[[noreturn]] void refuse(std::string const& path, std::string const& why) {
  throw IoError(ExitCode::cannot_create, fmt::format("{}: {}", path, why), path);
}

}  // namespace

ScratchFolder::ScratchFolder(std::string const& place)
    : path_((fs::path(place) / (kPrefix + std::string("XXXXXX"))).string()) {
  if (::mkdtemp(path_.data()) == nullptr) refuse(place, "no scratch folder can be made there: " + reason(errno));
}

ScratchFolder::~ScratchFolder() {
  std::error_code ignored;  // nobody is left to be told
  fs::remove_all(path_, ignored);
}

std::vector<std::string> ScratchFolder::others_in(std::string const& place) {
  std::vector<std::string> others;
  std::error_code unreadable;  // then they cannot be named, which stops nobody
  for (auto const& entry : fs::directory_iterator(place, unreadable)) {
    if (entry.path().filename().string().starts_with(kPrefix)) others.push_back(entry.path().string());
  }
  return others;
}

void settle_file_system(std::string const& folder) {
  UniqueFd const fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.valid() && ::syncfs(fd.get()) == 0) return;
  throw IoError(ExitCode::io, fmt::format("{}: syncfs failed: {}", folder, reason(errno)), folder);
}

void require_free_space(std::string const& folder, std::uint64_t bytes) {
  std::error_code error;
  auto const space = fs::space(folder, error);
  if (error) refuse(folder, "its free space cannot be found: " + error.message());
  if (space.available >= bytes) return;
  refuse(folder, fmt::format("{} are needed there, {} are free; --scratch names another place", human_bytes(bytes),
                             human_bytes(space.available)));
}

std::string file_system_of(std::string const& path) {
  std::error_code error;
  auto const whole = fs::weakly_canonical(path, error);
  std::ifstream mounts("/proc/self/mountinfo");
  std::string type;
  std::size_t longest = 0;
  for (std::string line; std::getline(mounts, line);) {
    // "36 35 98:0 /root /mount/point options … - ext4 /dev/vda …"
    std::istringstream words(line);
    std::string skipped, point;
    words >> skipped >> skipped >> skipped >> skipped >> point;
    auto const below = whole.lexically_relative(point);
    if (below.empty() || *below.begin() == ".." || point.size() < longest) continue;
    longest = point.size();
    auto const separator = line.find(" - ");
    std::istringstream(separator == std::string::npos ? "" : line.substr(separator + 3)) >> type;
  }
  return type;
}

}  // namespace rankslice::cli

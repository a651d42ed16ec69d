#include "cli/bench_scratch.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <vector>

#include "rankslice/error.hpp"

#include "cli/console.hpp"
#include "io/file.hpp"
#include "io/positional.hpp"

namespace rankslice::cli {

namespace fs = std::filesystem;

namespace {

[[noreturn]] void refuse(std::string const& path, std::string const& why) {
  throw IoError(ExitCode::cannot_create, fmt::format("{}: {}", path, why), path);
}

std::vector<std::byte> make_folder(std::string const& place) {
  auto name = (fs::path(place) / "rankslice-bench-XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr) refuse(place, "no scratch folder can be made there: " + reason(errno));
  auto const bytes = std::as_bytes(std::span(name));
  return {bytes.begin(), bytes.end()};
}

}  // namespace

ScratchFolder::ScratchFolder(std::string const& place, Communicator& world) {
  std::vector<std::byte> name;
  on_every_rank(world, [&] {
    if (world.rank() == 0) name = make_folder(place);
  });
  owns_ = world.rank() == 0;
  broadcast_vector(world, name, 0);
  path_.assign(reinterpret_cast<char const*>(name.data()), name.size());
  try {
    on_every_rank(world, [&] {
      std::error_code error;
      if (!fs::is_directory(path_, error)) refuse(path_, "not seen by this rank: --scratch must be shared by all");
    });
  } catch (...) {
    if (owns_) fs::remove(path_);
    throw;
  }
}

ScratchFolder::~ScratchFolder() {
  std::error_code ignored;  // nobody is left to be told
  if (owns_) fs::remove_all(path_, ignored);
}

void ScratchFolder::settle() const {
  UniqueFd const folder(::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder.valid() || ::syncfs(folder.get()) != 0) {
    throw IoError(ExitCode::io, fmt::format("{}: syncfs failed: {}", path_, reason(errno)), path_);
  }
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

#include "shared_output.hpp"

#include <cstring>
#include <filesystem>
#include <vector>

namespace rankslice {

SharedOutput::SharedOutput(std::string const& final_path, StagedOutput::Kind kind, bool overwrite, Communicator& world)
    : world_(world) {
  on_every_rank(world, [&] {
    if (world.rank() == 0) staged_ = std::make_unique<StagedOutput>(final_path, kind, overwrite);
  });
  std::vector<std::byte> name;
  if (staged_) {
    auto const* const text = reinterpret_cast<std::byte const*>(staged_->path().data());
    name.assign(text, text + staged_->path().size());
  }
  broadcast_vector(world, name, 0);
  path_.assign(reinterpret_cast<char const*>(name.data()), name.size());
}

void SharedOutput::publish() {
  on_every_rank(world_, [&] {
    if (staged_) staged_->publish();
  });
}

void make_parent_folders(std::string const& folder, std::string const& name) {
  auto const parent = (std::filesystem::path(folder) / name).parent_path();
  std::error_code error;
  std::filesystem::create_directories(parent, error);
  if (error) throw IoError(ExitCode::cannot_create, parent.string() + ": " + error.message(), parent.string());
}

}  // namespace rankslice

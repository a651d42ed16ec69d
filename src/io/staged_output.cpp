#include "io/staged_output.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <filesystem>

#include "rankslice/error.hpp"

#include "io/file.hpp"
#include "io/positional.hpp"

namespace rankslice {

namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPartial = ".partial-";

enum class Found { nothing, empty_folder, folder, file };

[[noreturn]] void refuse(std::string const& path, std::string const& why) {
  throw IoError(ExitCode::cannot_create, fmt::format("{} {}", path, why), path);
}

void check(int result, std::string_view what, std::string const& path) {
  if (result == 0) return;
  throw IoError(ExitCode::io, fmt::format("{}: {} failed: {}", path, what, reason(errno)), path);
}

std::string without_trailing_slashes(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

std::string parent_of(std::string const& path) {
  auto const parent = fs::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

std::string temporary_name(std::string const& final_path) {
  std::array<char, HOST_NAME_MAX + 1> host{};
  check(::gethostname(host.data(), host.size() - 1), "gethostname", final_path);
  return fmt::format("{}{}{}-{}", final_path, kPartial, host.data(), ::getpid());
}

Found find(std::string const& path) {
  std::error_code error;
  auto const status = fs::symlink_status(path, error);
  switch (status.type()) {
    case fs::file_type::not_found:
      return Found::nothing;
    case fs::file_type::regular:
      return Found::file;
    case fs::file_type::symlink:
      refuse(path, "is a symbolic link: name what it points to, or remove it");
    case fs::file_type::directory:
      break;
    case fs::file_type::none:
      refuse(path, fmt::format("cannot be looked at: {}", error.message()));
    default:
      refuse(path, "exists and is neither a file nor a folder");
  }
  auto const empty = fs::is_empty(path, error);
  if (error) refuse(path, fmt::format("cannot be looked into: {}", error.message()));
  return empty ? Found::empty_folder : Found::folder;
}

/// What stands at the final path, when the output may take its place.
Found find_replaceable(std::string const& path, StagedOutput::Kind kind, bool overwrite) {
  auto const found = find(path);
  if (found == Found::nothing) return found;
  auto const wants_folder = kind == StagedOutput::Kind::folder;
  if (wants_folder && found == Found::file) refuse(path, "is a file, and a folder is to be written");
  if (!wants_folder && found != Found::file) refuse(path, "is a folder, and a file is to be written");
  if (found != Found::empty_folder && !overwrite) refuse(path, "exists; pass --overwrite to replace it");
  return found;
}

std::vector<std::string> find_leftovers(std::string const& final_path) {
  std::vector<std::string> leftovers;
  auto const prefix = fs::path(final_path).filename().string() + std::string(kPartial);
  std::error_code unreadable;  // then they cannot be named, which stops nobody
  for (fs::directory_iterator entry(parent_of(final_path), unreadable), end; !unreadable && entry != end;
       entry.increment(unreadable)) {
    if (entry->path().filename().string().starts_with(prefix)) leftovers.push_back(entry->path().string());
  }
  std::ranges::sort(leftovers);
  return leftovers;
}

void sync_folders(std::string const& root) {
  std::error_code error;
  for (fs::recursive_directory_iterator entry(root, error), end; !error && entry != end; entry.increment(error)) {
    if (entry->symlink_status(error).type() == fs::file_type::directory) sync_directory(entry->path().string());
    if (error) break;
  }
  if (error) throw IoError(ExitCode::io, fmt::format("{}: cannot be listed: {}", root, error.message()), root);
  sync_directory(root);
}

int rename_with_flags(std::string const& from, std::string const& to, unsigned flags) {
  return ::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), flags);
}

bool is_unsupported(int error) { return error == EINVAL || error == ENOSYS; }

// Onto a name that nothing has, or onto an empty folder.
void rename_to_free_name(std::string const& from, std::string const& to, Found found) {
  if (found == Found::nothing) {
    if (rename_with_flags(from, to, RENAME_NOREPLACE) == 0) return;
    if (errno == EEXIST) refuse(to, "has been made by someone else meanwhile");
    if (!is_unsupported(errno)) check(-1, "rename to the final name", to);
  }
  if (::rename(from.c_str(), to.c_str()) == 0) return;
  if (errno == ENOTEMPTY || errno == EEXIST) refuse(to, "has been filled by someone else meanwhile");
  check(-1, "rename to the final name", to);
}

void remove_replaced(std::string const& old, std::string const& final_path) {
  std::error_code error;
  fs::remove_all(old, error);
  if (!error) return;
  throw IoError(
      ExitCode::io,
      fmt::format("{} is in place, but the old one, now {}, cannot be removed: {}", final_path, old, error.message()),
      old);
}

}  // namespace

StagedOutput::StagedOutput(std::string final_path, Kind kind, bool overwrite)
    : final_(without_trailing_slashes(std::move(final_path))), kind_(kind), overwrite_(overwrite) {
  auto const name = fs::path(final_).filename();
  if (name.empty() || name == "." || name == "..") refuse("'" + final_ + "'", "is no name that an output can be given");
  auto const parent = parent_of(final_);
  std::error_code error;
  if (!fs::is_directory(parent, error)) {
    refuse(final_, fmt::format("cannot be created: there is no folder {}", parent));
  }
  static_cast<void>(find_replaceable(final_, kind_, overwrite_));
  temporary_ = temporary_name(final_);
  leftovers_ = find_leftovers(final_);
  if (std::ranges::find(leftovers_, temporary_) != leftovers_.end()) {
    refuse(temporary_, "is left over from an earlier run: remove it first");
  }
  if (kind_ == Kind::folder && ::mkdir(temporary_.c_str(), 0777) != 0) {
    refuse(temporary_, fmt::format("cannot be created: {}", reason(errno)));
  }
}

StagedOutput::~StagedOutput() {
  std::error_code ignored;  // nobody is left to be told; the next run names what is left over
  if (!published_) fs::remove_all(temporary_, ignored);
}

void StagedOutput::publish() {
  if (kind_ == Kind::folder) sync_folders(temporary_);
  auto const found = find_replaceable(final_, kind_, overwrite_);
  if (found == Found::nothing || found == Found::empty_folder) {
    rename_to_free_name(temporary_, final_, found);
    published_ = true;
    sync_directory(parent_of(final_));
  } else {
    replace_existing();
  }
}

void StagedOutput::replace_existing() {
  auto old = temporary_;
  if (rename_with_flags(temporary_, final_, RENAME_EXCHANGE) != 0) {
    if (!is_unsupported(errno)) check(-1, "exchange with the new output", final_);
    old = temporary_ + "-old";  // a crash between the two renames leaves both, whole, under names that tell
    check(::rename(final_.c_str(), old.c_str()), "rename of the old output", final_);
    if (::rename(temporary_.c_str(), final_.c_str()) != 0) {
      auto const why = reason(errno);
      auto const undo = fmt::format("rename back from {}", old);
      check(::rename(old.c_str(), final_.c_str()), undo, final_);
      throw IoError(ExitCode::io, fmt::format("{}: rename to the final name failed: {}", final_, why), final_);
    }
  }
  published_ = true;
  sync_directory(parent_of(final_));  // before the removal, so that one of the two is there at any time
  remove_replaced(old, final_);
}

void sync_directory(std::string const& path) {
  UniqueFd const fd(uninterrupted([&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
  check(fd.valid() ? 0 : -1, "open", path);
  // Some file systems have no fsync for directories and say EINVAL: their names are safe without it, or never.
  if (uninterrupted([&] { return ::fsync(fd.get()); }) != 0 && errno != EINVAL) check(-1, "fsync", path);
}

}  // namespace rankslice

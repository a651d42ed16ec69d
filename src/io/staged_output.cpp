#include "io/staged_output.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <set>
#include <string_view>

#include "rankslice/error.hpp"

#include "core/host_name.hpp"
#include "io/folders.hpp"
#include "io/positional.hpp"

namespace rankslice {

namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPartial = ".partial-";
constexpr std::string_view kProgress = ".progress";

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

/// One that no other process gives.
std::string own_name(std::string const& final_path) {
  return fmt::format("{}{}{}-{}", final_path, kPartial, host_name(), ::getpid());
}

bool exists(std::string const& path) {
  std::error_code unknown;
  return fs::exists(fs::symlink_status(path, unknown));
}

/// `wanted`, or with the first number behind it that nothing has.
std::string free_name(std::string const& wanted) {
  auto name = wanted;
  for (int number = 2; exists(name); ++number) name = fmt::format("{}-{}", wanted, number);
  return name;
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

/// Outputs that are not `own`. Files that go with one are not named beside it.
std::vector<std::string> find_leftovers(std::string const& final_path, std::string const& own) {
  std::set<std::string> leftovers;
  auto const base = fs::path(final_path).filename().string();
  auto const prefix = base + std::string(kPartial);
  std::error_code unreadable;  // then they cannot be named, which stops nobody
  for (fs::directory_iterator entry(parent_of(final_path), unreadable), end; !unreadable && entry != end;
       entry.increment(unreadable)) {
    auto const name = entry->path().filename().string();
    if (!name.starts_with(prefix)) continue;
    auto const of_progress = name.find(kProgress, prefix.size());
    leftovers.insert(final_path + name.substr(0, of_progress).substr(base.size()));
  }
  leftovers.erase(own);
  return {leftovers.begin(), leftovers.end()};
}

[[noreturn]] void refuse_existing(std::string const& path) {
  std::string why = "exists; pass --overwrite to replace it";
  for (auto const& leftover : find_leftovers(path, {})) {
    auto const progress = leftover + std::string(kProgress);
    if (exists(leftover) || !exists(progress)) continue;
    why += fmt::format(
        ". It seems to be complete: a run that left {} was ended just after it had put its output in place", progress);
  }
  refuse(path, why);
}

/// What stands at the final path, when the output may take its place.
Found find_replaceable(std::string const& path, StagedOutput::Kind kind, bool overwrite) {
  auto const found = find(path);
  if (found == Found::nothing) return found;
  auto const wants_folder = kind == StagedOutput::Kind::folder;
  if (wants_folder && found == Found::file) refuse(path, "is a file, and a folder is to be written");
  if (!wants_folder && found != Found::file) refuse(path, "is a folder, and a file is to be written");
  if (found != Found::empty_folder && !overwrite) refuse_existing(path);
  return found;
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

void remove_after_publish(std::string const& path, std::string_view what, std::string const& final_path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (!error) return;
  throw IoError(ExitCode::io,
                fmt::format("{} is in place, but {}{} cannot be removed: {}", final_path, what, path, error.message()),
                path);
}

}  // namespace

StagedOutput::StagedOutput(std::string final_path, Kind kind, bool overwrite, std::string const& resume_key)
    : final_(without_trailing_slashes(std::move(final_path))), kind_(kind), overwrite_(overwrite) {
  auto const name = fs::path(final_).filename();
  if (name.empty() || name == "." || name == "..") refuse("'" + final_ + "'", "is no name that an output can be given");
  auto const parent = parent_of(final_);
  std::error_code error;
  if (!fs::is_directory(parent, error)) {
    refuse(final_, fmt::format("cannot be created: there is no folder {}", parent));
  }
  static_cast<void>(find_replaceable(final_, kind_, overwrite_));
  temporary_ = resume_key.empty() ? own_name(final_) : fmt::format("{}{}{}", final_, kPartial, resume_key);
  leftovers_ = find_leftovers(final_, resume_key.empty() ? std::string() : temporary_);
  try {
    make(resume_key);
  } catch (...) {
    if (progress_ && progress_->records().empty()) ::unlink(progress_->path().c_str());
    throw;
  }
}

void StagedOutput::make(std::string const& resume_key) {
  resume_key.empty() ? reserve_name() : take_over(resume_key);
  if (kind_ == Kind::folder && !taken_over_ && ::mkdir(temporary_.c_str(), 0777) != 0) {
    refuse(temporary_, fmt::format("cannot be created: {}", reason(errno)));
  }
}

void StagedOutput::reserve_name() {
  if (std::ranges::find(leftovers_, temporary_) == leftovers_.end()) return;
  refuse(temporary_, "is left over from an earlier run: remove it first");
}

void StagedOutput::take_over(std::string const& resume_key) {
  progress_.emplace(temporary_ + std::string(kProgress), resume_key);
  auto const found = find(temporary_);
  auto const of_other_kind = kind_ == Kind::folder ? Found::file : Found::folder;
  if (found == of_other_kind) refuse(temporary_, "is not what this output leaves: remove it first");
  taken_over_ = found != Found::nothing && progress_->earlier_holder();
  keep_ = taken_over_;  // until someone knows better
  if (taken_over_) return;
  // Records without what they are of come of a process that was killed after it had published, or while it removed
  // that. Of files without records nobody knows who made them.
  progress_->forget_all();
  std::error_code error;
  fs::remove_all(temporary_, error);
  if (error) refuse(temporary_, fmt::format("cannot be removed: {}", error.message()));
}

std::vector<std::string> StagedOutput::warnings() const {
  std::vector<std::string> texts;
  for (auto const& leftover : leftovers_) {
    texts.push_back(leftover + ": belongs to a run that still goes on, or to one that was killed and left it behind");
  }
  if (progress_ && !progress_->locked() && progress_->earlier_holder()) {
    texts.push_back(fmt::format("{}: the file system has no locks, so that nobody can tell whether {} still writes it",
                                temporary_, *progress_->earlier_holder()));
  }
  return texts;
}

StagedOutput::~StagedOutput() {
  if (published_ || (keep_ && progress_) || (progress_ && !progress_->held())) return;
  std::error_code ignored;  // nobody is left to be told; the next run names what is left over
  fs::remove_all(temporary_, ignored);
  if (progress_) fs::remove(progress_->path(), ignored);  // last: it has the lock
}

void StagedOutput::publish() {
  if (progress_) progress_->require_held();
  if (kind_ == Kind::folder) sync_folders(temporary_);
  auto const found = find_replaceable(final_, kind_, overwrite_);
  if (found == Found::nothing || found == Found::empty_folder) {
    rename_to_free_name(temporary_, final_, found);
    published_ = true;
    sync_directory(parent_of(final_));
  } else {
    if (progress_) leave_name_of_key();
    replace_existing();
  }
  if (progress_ && progress_->held()) remove_after_publish(progress_->path(), "", final_);
}

// What is replaced comes to the temporary name for a moment, and must not be taken for a part of this output then.
void StagedOutput::leave_name_of_key() {
  auto const own = free_name(own_name(final_));
  check(::rename(temporary_.c_str(), own.c_str()), fmt::format("rename to {}", own), temporary_);
  temporary_ = own;
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
  remove_after_publish(old, "the old one, now ", final_);
}

}  // namespace rankslice

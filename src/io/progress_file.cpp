#include "io/progress_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <sstream>

#include "rankslice/error.hpp"

#include "core/host_name.hpp"
#include "io/folders.hpp"
#include "io/positional.hpp"

namespace rankslice {

namespace {

constexpr std::string_view kFormat = "rankslice-progress/1";

struct FirstLine {
  std::string format, key, host, process;
};

FirstLine parse_first_line(std::string_view text) {
  FirstLine line;
  std::istringstream(std::string(text)) >> line.format >> line.key >> line.host >> line.process;
  return line;
}

std::string holder(FirstLine const& line) { return fmt::format("process {} on {}", line.process, line.host); }

[[noreturn]] void refuse(std::string const& path, std::string const& why) {
  throw IoError(ExitCode::cannot_create, fmt::format("{} {}", path, why), path);
}

std::string content(int fd, std::string const& path) {
  std::string text(identity_of(fd, path).size, '\0');
  std::size_t got = 0;
  while (got < text.size()) {
    auto const rest = text.size() - got;
    auto const put = uninterrupted([&] { return ::pread(fd, text.data() + got, rest, static_cast<::off_t>(got)); });
    if (put < 0) throw IoError(ExitCode::io, fmt::format("{}: read failed: {}", path, reason(errno)), path);
    if (put == 0) break;
    got += static_cast<std::size_t>(put);
  }
  text.resize(got);
  return text;
}

UniqueFd open_to_lock(std::string const& path) {
  UniqueFd fd(uninterrupted([&] { return ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666); }));
  if (!fd.valid()) refuse(path, fmt::format("cannot be opened: {}", reason(errno)));
  return fd;
}

enum class Lock { taken, held_by_another, unknown_to_file_system };

Lock try_lock(int fd) {
  if (uninterrupted([&] { return ::flock(fd, LOCK_EX | LOCK_NB); }) == 0) return Lock::taken;
  return errno == EWOULDBLOCK ? Lock::held_by_another : Lock::unknown_to_file_system;
}

bool leads_to(std::string const& path, int fd) {
  struct ::stat named {};
  struct ::stat opened {};
  return ::stat(path.c_str(), &named) == 0 && ::fstat(fd, &opened) == 0 && named.st_ino == opened.st_ino &&
         named.st_dev == opened.st_dev;
}

}  // namespace

ProgressFile::ProgressFile(std::string path, std::string const& key) : path_(std::move(path)), key_(key) {
  lock();
  read();
  try {
    rewrite();
  } catch (...) {
    if (!earlier_holder_) ::unlink(path_.c_str());
    throw;
  }
}

// Who holds the file puts another one in its place when it rewrites it: a lock on one that has no name any more is
// worth nothing.
void ProgressFile::lock() {
  do {
    lock_ = open_to_lock(path_);
    auto const lock = try_lock(lock_.get());
    if (lock == Lock::held_by_another) refuse_held();
    locked_ = lock == Lock::taken;
  } while (!leads_to(path_, lock_.get()));
}

void ProgressFile::refuse_held() const {
  auto const text = content(lock_.get(), path_);
  std::string_view lines(text);
  auto const line = parse_first_line(take_checked_line(lines));
  auto const who = line.process.empty() ? "another process" : holder(line);
  refuse(path_, fmt::format("is held by {0}, which writes the same output; where that host is down and its lock stays, "
                            "free it by a copy: cp {1} {1}.copy && mv {1}.copy {1}",
                            who, path_));
}

void ProgressFile::read() {
  auto const text = content(lock_.get(), path_);
  std::string_view lines(text);
  auto const line = parse_first_line(take_checked_line(lines));
  if (line.format != kFormat || line.key != key_) return;
  earlier_holder_ = holder(line);
  records_ = from_lines(lines);
}

bool ProgressFile::held() const { return leads_to(path_, lock_.get()); }

void ProgressFile::require_held() const {
  if (!held()) throw IoError(ExitCode::io, path_ + ": another run has taken this over", path_);
}

void ProgressFile::rewrite() {
  auto const fresh = path_ + ".new";
  ::unlink(fresh.c_str());  // of a process that was killed here
  try {
    put_in_place(fresh);
  } catch (...) {
    ::unlink(fresh.c_str());
    throw;
  }
}

void ProgressFile::put_in_place(std::string const& fresh) {
  writer_ = FileWriter::create(fresh);
  auto const text =
      checked_line(fmt::format("{} {} {} {}", kFormat, key_, host_name(), ::getpid())) + to_lines(records_);
  writer_->write(std::as_bytes(std::span(text)), 0);
  writer_->sync();
  end_ = text.size();
  auto lock = open_to_lock(fresh);
  if (locked_) locked_ = try_lock(lock.get()) == Lock::taken;
  if (::rename(fresh.c_str(), path_.c_str()) != 0) {
    throw IoError(ExitCode::io, fmt::format("{}: rename failed: {}", path_, reason(errno)), path_);
  }
  lock_ = std::move(lock);
  sync_directory(parent_of(path_));
}

void ProgressFile::append(std::span<SegmentRecord const> records) {
  require_held();
  auto const lines = to_lines(records);
  writer_->write(std::as_bytes(std::span(lines)), end_);
  writer_->sync();
  end_ += lines.size();
  records_.insert(records_.end(), records.begin(), records.end());
}

void ProgressFile::forget(std::span<std::string const> names) {
  require_held();
  auto const forgotten = [&](SegmentRecord const& record) { return std::ranges::count(names, record.name) > 0; };
  if (std::erase_if(records_, forgotten) > 0) rewrite();
}

void ProgressFile::forget_all() {
  require_held();
  if (records_.empty()) return;
  records_.clear();
  rewrite();
}

}  // namespace rankslice

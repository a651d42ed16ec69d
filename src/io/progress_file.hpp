#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "io/file.hpp"
#include "io/progress_lines.hpp"

namespace rankslice {

/// What is done of an unfinished output, in a file beside it that outlives the process, which holds it by a lock. Its
/// first line names the format, the key of the output and who holds it; then there is a line for each segment. Local.
class ProgressFile {
 public:
  /// Takes over what an earlier process left for the same key, or begins. @throws IoError: `cannot_create` when another
  /// process holds it, named by host and process id, or when it cannot be made; `io`.
  ProgressFile(std::string path, std::string const& key);

  [[nodiscard]] std::string const& path() const { return path_; }
  /// Who held it before, "process 12 on node1": nothing when it begins, or when what was there is of another key or
  /// format, or damaged.
  [[nodiscard]] std::optional<std::string> const& earlier_holder() const { return earlier_holder_; }
  /// Whether the file system has locks.
  [[nodiscard]] bool locked() const { return locked_; }
  /// Whether this process still holds it. Where there are no locks another may have taken it over.
  [[nodiscard]] bool held() const;
  /// @throws IoError `io`, when this process does not
  void require_held() const;
  [[nodiscard]] std::vector<SegmentRecord> const& records() const { return records_; }

  /// More segments that are done. On stable storage when it returns. @throws IoError, also when it is no longer held
  void append(std::span<SegmentRecord const> records);
  /// As if these had never been done. @throws IoError, also when it is no longer held
  void forget(std::span<std::string const> names);
  void forget_all();

 private:
  void lock();
  void read();
  void rewrite();
  void put_in_place(std::string const& fresh);
  [[noreturn]] void refuse_held() const;

  std::string path_, key_;
  UniqueFd lock_;
  bool locked_ = true;
  std::optional<std::string> earlier_holder_;
  std::vector<SegmentRecord> records_;
  std::optional<FileWriter> writer_;
  std::uint64_t end_ = 0;  // of what is written
};

}  // namespace rankslice

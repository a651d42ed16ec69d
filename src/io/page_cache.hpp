#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "rankslice/tensor_catalog.hpp"

#include "io/file.hpp"

namespace rankslice {

/// What of some runs of a file is not in the page cache of this host, ascending. To the MiB: a smaller part counts as
/// there when three quarters of its pages are. Nothing where the system does not tell, as it tells only who owns a file
/// or may write to it. Nothing is read or mapped into sight. Local.
[[nodiscard]] std::optional<std::vector<Range>> cold_parts(int fd, std::vector<Range> const& runs);

/// Of a range of a file what is in the page cache of this host; nothing where the system does not tell. Local.
[[nodiscard]] std::optional<std::uint64_t> bytes_in_page_cache(int fd, Range bytes);

/// Another reader, behind whom the page cache forgets what was not there before, but for the first and the last page
/// of it: others may want the rest of these.
class DroppingReader final : public FileReader {
 public:
  /// `cold`: what may be forgotten, ascending.
  DroppingReader(std::unique_ptr<FileReader> file, std::vector<Range> cold);
  ~DroppingReader() override;
  DroppingReader(DroppingReader const&) = delete;
  DroppingReader& operator=(DroppingReader const&) = delete;

  [[nodiscard]] std::string const& path() const override { return file_->path(); }
  [[nodiscard]] FileIdentity identity() const override { return file_->identity(); }
  void read(std::span<std::byte> out, std::uint64_t offset) override;

 private:
  void drop(std::vector<Range> const& parts) const;
  void drop(int fd, Range bytes) const;

  std::unique_ptr<FileReader> file_;
  std::vector<Range> cold_;
  Range behind_;                      // read and not forgotten yet
  std::vector<std::uint64_t> edges_;  // where reads did not go on
};

}  // namespace rankslice

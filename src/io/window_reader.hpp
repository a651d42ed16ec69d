#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "rankslice/tensor_catalog.hpp"

#include "core/literals.hpp"
#include "io/file.hpp"

namespace rankslice {

/// Memory that the readers of several files share: bytes of one of them that were read ahead of being asked for.
class ReadWindow {
 public:
  explicit ReadWindow(std::uint64_t capacity = 512_KiB) : capacity_(capacity) {}

 private:
  friend class WindowReader;
  std::uint64_t capacity_;
  std::vector<std::byte> bytes_;
  FileReader const* owner_ = nullptr;  // whose bytes they are
  Range range_;                        // where they stand in its file
  std::uint64_t unserved_ = 0;         // how many nobody has asked for yet
};

/// Another reader, of whose file it is known what will be read, each byte once. Small requests that touch are read with
/// one call into a window and served from there; those of half a window or more go straight to where they belong.
/// Whatever the order of the requests, no byte is read twice and none that is not in the runs. Requests that are not as
/// was said are read as they come.
class WindowReader final : public FileReader {
 public:
  /// `runs`: what will be read, ascending, with gaps between them. `window` outlives the reader.
  WindowReader(std::unique_ptr<FileReader> file, std::vector<Range> const& runs, ReadWindow& window);
  ~WindowReader() override { leave_window(); }
  WindowReader(WindowReader const&) = delete;
  WindowReader& operator=(WindowReader const&) = delete;

  [[nodiscard]] std::string const& path() const override { return file_->path(); }
  [[nodiscard]] FileIdentity identity() const override { return file_->identity(); }
  /// An error in what is read ahead names that, not the request; it can be repeated.
  void read(std::span<std::byte> out, std::uint64_t offset) override;

 private:
  using Unread = std::map<std::uint64_t, std::uint64_t>;  // end of each range by its begin

  [[nodiscard]] std::uint64_t held_from(std::uint64_t offset) const;
  void serve(std::span<std::byte> out, std::uint64_t offset);
  [[nodiscard]] Unread::iterator unread_around(Range wanted);
  [[nodiscard]] bool should_fill(Range ahead, Range wanted) const;
  void fill(Range ahead);
  void leave_window();
  void mark_read(Unread::iterator around, Range read);

  std::unique_ptr<FileReader> file_;
  ReadWindow& window_;
  Unread unread_;
};

}  // namespace rankslice

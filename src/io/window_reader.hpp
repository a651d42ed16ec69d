#pragma once

#include <array>
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

/// Memory that the readers of several files share: windows with bytes that were read ahead of being asked for. Three:
/// for weights, for block scales that lie in another place of the file, and for those that begin the next file.
class ReadWindows {
 public:
  /// @param capacity bytes of each window.
  explicit ReadWindows(std::uint64_t capacity = 512_KiB) : capacity_(capacity) {}

 private:
  friend class WindowReader;
  struct Window {
    std::vector<std::byte> bytes;
    FileReader const* owner = nullptr;  // whose bytes they are
    Range range;                        // where they stand in its file
    std::uint64_t unserved = 0;         // how many nobody has asked for yet
  };
  std::uint64_t capacity_;
  std::array<Window, 3> windows_;
};

/// Another reader, of whose file it is known what will be read, each byte once. Small requests that touch are read with
/// one call into a window and served from there; those of half a window or more go straight to where they belong.
/// Whatever the order of the requests, no byte is read twice and none that is not in the runs. Requests that are not as
/// was said are read as they come.
class WindowReader final : public FileReader {
 public:
  /// `runs`: what will be read, ascending, with gaps between them. `windows` outlives the reader.
  WindowReader(std::unique_ptr<FileReader> file, std::vector<Range> const& runs, ReadWindows& windows);
  ~WindowReader() override;
  WindowReader(WindowReader const&) = delete;
  WindowReader& operator=(WindowReader const&) = delete;

  [[nodiscard]] std::string const& path() const override { return file_->path(); }
  [[nodiscard]] FileIdentity identity() const override { return file_->identity(); }
  /// An error in what is read ahead names that, not the request; it can be repeated.
  void read(std::span<std::byte> out, std::uint64_t offset) override;

 private:
  using Window = ReadWindows::Window;
  using Unread = std::map<std::uint64_t, std::uint64_t>;  // end of each range by its begin

  [[nodiscard]] Window* window_with(std::uint64_t offset);
  [[nodiscard]] Window* free_window();
  [[nodiscard]] std::size_t serve(Window& window, std::span<std::byte> out, std::uint64_t offset);
  void fill(Window& window, Range ahead);
  [[nodiscard]] Unread::iterator unread_around(Range wanted);
  void mark_read(Unread::iterator around, Range read);

  std::unique_ptr<FileReader> file_;
  ReadWindows& windows_;
  Unread unread_;
};

}  // namespace rankslice

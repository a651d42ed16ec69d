#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace rankslice {

class Communicator;

/// Elements of one tensor in device memory, and their places in it as digest/1 counts them: position p of line l of
/// entry e lies (e·entry_stride + l·line_stride + p) elements behind `data`.
struct DigestBox {
  std::byte const* data = nullptr;
  std::uint64_t element_bytes = 1;  ///< 1, 2, 4 or 8
  std::uint64_t entries = 0, lines = 0, length = 0;
  std::uint64_t entry_stride = 0, line_stride = 0;   ///< In elements.
  std::uint64_t first_line = 0, first_position = 0;  ///< Where line 0 and position 0 are in the whole tensor.
  /// Lines are rows of the tensor as its file has it, positions its columns; the other way round when swapped.
  bool swapped = false;
};

/// The memory of a GPU, and the work that is done there. One per rank; one thread uses it at a time. Work on the device
/// happens in the order of the calls, which return before it is done, except where they say that they wait. An error of
/// work that was started earlier is thrown by a later call. Everything but the destructor throws DeviceError, which
/// names the device.
class Device {
 public:
  Device() = default;
  Device(Device const&) = delete;
  Device& operator=(Device const&) = delete;
  virtual ~Device() = default;

  /// "cuda": for reports, and for LibTorch.
  [[nodiscard]] virtual std::string_view kind() const = 0;
  /// Among the visible devices of its kind.
  [[nodiscard]] virtual int index() const = 0;
  /// "cuda:0 (NVIDIA H100 80GB HBM3)": for people.
  [[nodiscard]] virtual std::string const& name() const = 0;

  /// Fresh device memory, not zeroed, aligned for every element type. The last copy releases it, on any thread, also
  /// after the device is gone.
  [[nodiscard]] virtual std::shared_ptr<std::byte> allocate(std::uint64_t bytes) = 0;
  /// The most bytes of device memory that were allocated at any time, the device's own among them.
  [[nodiscard]] virtual std::uint64_t peak_bytes() const = 0;

  /// Pinned host memory for the next upload, one of two blocks by turns: waits until the uploads from the block have
  /// been done. It may be written until the call of `staging` after the next one.
  [[nodiscard]] virtual std::span<std::byte> staging(std::uint64_t bytes) = 0;
  /// Copy bytes from the block that `staging` gave last to device memory.
  virtual void upload(std::span<std::byte const> staged, std::byte* to) = 0;
  /// The same, as they are, of a matrix of elements of 1, 2, 4 or 8 bytes, its rows `stride` elements apart; then on
  /// the device to[c·to_stride + r] = staged[r, c], in elements.
  virtual void upload_transposed(std::byte const* staged, std::uint64_t rows, std::uint64_t columns,
                                 std::uint64_t stride, std::uint64_t element_bytes, std::byte* to,
                                 std::uint64_t to_stride) = 0;
  /// Copy device memory to host memory. Waits.
  virtual void download(std::byte const* from, std::span<std::byte> to) = 0;
  /// Of each entry of each box, in order: q(e), the sum of its words weighed by row and column. Waits.
  virtual void digest(std::span<DigestBox const> boxes, std::span<std::uint64_t> sums) = 0;
  /// Wait until everything is done.
  virtual void finish() = 0;
};

/// Which of a host's visible devices serves a rank: by turns. @throws DeviceError when there is none
[[nodiscard]] int device_of_rank(int rank_on_host, int visible_devices);

/// How many lower ranks are on the same host. Local.
[[nodiscard]] int rank_on_host(Communicator const& world);

}  // namespace rankslice

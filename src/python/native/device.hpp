#pragma once

#include <string>

#include "rankslice/device.hpp"

#include "python/native/bindings.hpp"

namespace rankslice::python {

/// Memory of one of torch's devices, in the hands of an object of Python's (`_device.py`), so that this library needs
/// none of theirs. What that raises becomes DeviceError.
class TorchDevice final : public Device {
 public:
  explicit TorchDevice(nb::object memory);

  [[nodiscard]] std::string_view kind() const override { return kind_; }
  [[nodiscard]] int index() const override { return index_; }
  [[nodiscard]] std::string const& name() const override { return name_; }

  [[nodiscard]] std::shared_ptr<std::byte> allocate(std::uint64_t bytes) override;
  [[nodiscard]] std::uint64_t peak_bytes() const override;
  [[nodiscard]] std::span<std::byte> staging(std::uint64_t bytes) override;
  void upload(std::span<std::byte const> staged, std::byte* to) override;
  void upload_transposed(std::byte const* staged, std::uint64_t rows, std::uint64_t columns, std::uint64_t stride,
                         std::uint64_t element_bytes, std::byte* to, std::uint64_t to_stride) override;
  void download(std::byte const* from, std::span<std::byte> to) override;
  /// Downloads a few lines at a time, and digests them here.
  void digest(std::span<DigestBox const> boxes, std::span<std::uint64_t> sums) override;
  void finish() override;

 private:
  /// `step` with the GIL. @throws DeviceError for what Python raises, Interrupted for what is no Exception
  template <typename Step>
  auto in_python(Step const& step) const;
  [[nodiscard]] std::uint64_t place_of(std::byte const* staged) const;

  std::shared_ptr<nb::object> memory_;
  std::string kind_, name_;
  int index_;
  std::span<std::byte> staged_;
};

}  // namespace rankslice::python

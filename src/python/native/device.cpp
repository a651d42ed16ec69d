#include "python/native/device.hpp"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <vector>

#include "device/word_boxes.hpp"
#include "python/native/call.hpp"
#include "python/native/errors.hpp"

namespace rankslice::python {

namespace {

std::uintptr_t address(std::byte const* data) { return reinterpret_cast<std::uintptr_t>(data); }

std::byte* pointer(nb::object const& given) { return reinterpret_cast<std::byte*>(nb::cast<std::uintptr_t>(given)); }

std::uint64_t weigh(DigestBox const& box) {
  std::uint64_t sum = 0;
  for_each_word_box(box, [&](auto const& words) {
    for (std::uint64_t panel = 0; panel < panels_per_entry(words); ++panel) {
      for (std::uint32_t thread = 0; thread < kPanelThreads; ++thread) sum += weigh_panel(words, panel, thread);
    }
  });
  return sum;
}

/// From the first element of an entry to its last.
std::uint64_t bytes_of_entry(DigestBox const& box) {
  if (box.lines == 0 || box.length == 0) return 0;
  return ((box.lines - 1) * box.line_stride + box.length) * box.element_bytes;
}

}  // namespace

TorchDevice::TorchDevice(nb::object memory)
    : memory_(without_gil(std::move(memory))),
      kind_(nb::cast<std::string>(memory_->attr("kind"))),
      name_(nb::cast<std::string>(memory_->attr("name"))),
      index_(nb::cast<int>(memory_->attr("index"))) {}

template <typename Step>
auto TorchDevice::in_python(Step const& step) const {
  nb::gil_scoped_acquire const gil;
  try {
    return step(*memory_);
  } catch (nb::python_error const& error) {
    if (!error.matches(PyExc_KeyboardInterrupt)) throw DeviceError(name_ + ": " + described(error));
    if (auto* const call = Call::current()) std::rethrow_exception(call->keep(error));
    throw Interrupted();
  }
}

std::shared_ptr<std::byte> TorchDevice::allocate(std::uint64_t bytes) {
  auto* const data = in_python([&](nb::object const& memory) { return pointer(memory.attr("allocate")(bytes)); });
  return {data, [memory = memory_](std::byte* released) {
            if (!Py_IsInitialized()) return;
            nb::gil_scoped_acquire const gil;
            memory->attr("forget")(address(released));
          }};
}

std::uint64_t TorchDevice::peak_bytes() const {
  return in_python([](nb::object const& memory) { return nb::cast<std::uint64_t>(memory.attr("peak_bytes")()); });
}

std::span<std::byte> TorchDevice::staging(std::uint64_t bytes) {
  auto* const block = in_python([&](nb::object const& memory) { return pointer(memory.attr("staging")(bytes)); });
  staged_ = {block, bytes};
  return staged_;
}

std::uint64_t TorchDevice::place_of(std::byte const* staged) const {
  return static_cast<std::uint64_t>(staged - staged_.data());
}

void TorchDevice::upload(std::span<std::byte const> staged, std::byte* to) {
  if (staged.empty()) return;
  in_python(
      [&](nb::object const& memory) { memory.attr("upload")(place_of(staged.data()), staged.size(), address(to)); });
}

void TorchDevice::upload_transposed(std::byte const* staged, std::uint64_t rows, std::uint64_t columns,
                                    std::uint64_t stride, std::uint64_t element_bytes, std::byte* to,
                                    std::uint64_t to_stride) {
  if (rows == 0 || columns == 0) return;
  in_python([&](nb::object const& memory) {
    memory.attr("upload_transposed")(place_of(staged), rows, columns, stride, element_bytes, address(to), to_stride);
  });
}

void TorchDevice::download(std::byte const* from, std::span<std::byte> to) {
  if (to.empty()) return;
  in_python([&](nb::object const& memory) {
    auto* const data = reinterpret_cast<char*>(to.data());
    auto const view = nb::steal(PyMemoryView_FromMemory(data, static_cast<Py_ssize_t>(to.size()), PyBUF_WRITE));
    memory.attr("download")(address(from), view);
  });
}

void TorchDevice::digest(std::span<DigestBox const> boxes, std::span<std::uint64_t> sums) {
  std::vector<std::byte> entry;
  auto sum = sums.begin();
  for (auto box : boxes) {
    auto const* const first = box.data;
    entry.resize(bytes_of_entry(box));
    box.data = entry.data();
    auto const entries = std::exchange(box.entries, 1);
    for (std::uint64_t e = 0; e < entries; ++e) {
      download(first + e * box.entry_stride * box.element_bytes, entry);
      *sum++ = weigh(box);
    }
  }
}

void TorchDevice::finish() {
  in_python([](nb::object const& memory) { memory.attr("finish")(); });
}

void bind_device(nb::module_& module) {
  nb::class_<TorchDevice>(module, "Device").def(nb::init<nb::object>(), nb::arg("memory"));
}

}  // namespace rankslice::python

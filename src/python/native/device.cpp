#include "python/native/device.hpp"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <vector>

#include "core/digest_factors.hpp"
#include "core/literals.hpp"
#include "device/word_boxes.hpp"
#include "python/native/call.hpp"
#include "python/native/errors.hpp"
#include "transform/weigh.hpp"

namespace rankslice::python {

namespace {

std::uintptr_t address(std::byte const* data) { return reinterpret_cast<std::uintptr_t>(data); }

std::byte* pointer(nb::object const& given) { return reinterpret_cast<std::byte*>(nb::cast<std::uintptr_t>(given)); }

constexpr std::uint64_t kBlockBytes = 4_MiB;

/// q of lines of one entry.
template <typename Word>
std::uint64_t weigh(WordBox<Word> const& box) {
  FactorTable const factors(box.position_axis, box.first_position, box.length);
  std::vector<std::uint64_t> of_lines(box.lines);
  weigh_lines({.data = reinterpret_cast<std::byte const*>(box.words),
               .word_bytes = sizeof(Word),
               .word_stride = box.position_stride * sizeof(Word),
               .count = box.length,
               .lines = box.lines,
               .line_stride = box.line_stride * sizeof(Word)},
              factors.from(0), of_lines.data());
  std::uint64_t sum = 0;
  for (std::uint64_t line = 0; line < box.lines; ++line) {
    sum += digest_factor(box.line_axis, box.first_line + line * box.line_step) * of_lines[line];
  }
  return sum;
}

/// From the first element of an entry to its last.
std::uint64_t span_bytes(DigestBox const& box) {
  return ((box.lines - 1) * box.line_stride + box.length) * box.element_bytes;
}

/// Call step(entry, lines) for the lines of a box, of each entry a few at a time.
template <typename Step>
void for_each_block(DigestBox const& box, Step const& step) {
  auto const most = std::max<std::uint64_t>(1, kBlockBytes / (box.line_stride * box.element_bytes));
  for (std::uint64_t entry = 0; entry < box.entries; ++entry) {
    for (std::uint64_t line = 0; line < box.lines; line += most) {
      auto lines = box;
      lines.data += (entry * box.entry_stride + line * box.line_stride) * box.element_bytes;
      lines.entries = 1;
      lines.lines = std::min(most, box.lines - line);
      lines.first_line += line;
      step(entry, lines);
    }
  }
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
    auto* const call = Call::current();
    if (!error.matches(PyExc_Exception)) {
      if (call != nullptr) std::rethrow_exception(call->keep(error));
      throw Interrupted();
    }
    if (call != nullptr) call->blame(nb::borrow(error.value()));
    throw DeviceError(name_ + ": " + described(error));
  }
}

std::shared_ptr<std::byte> TorchDevice::allocate(std::uint64_t bytes) {
  auto* const data = in_python([&](nb::object const& memory) { return pointer(memory.attr("allocate")(bytes)); });
  return {data, [memory = memory_, bytes](std::byte* released) {
            if (!Py_IsInitialized()) return;
            nb::gil_scoped_acquire const gil;
            memory->attr("release")(address(released), bytes);
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
  std::ranges::fill(sums, 0);
  std::vector<std::byte> block;
  for (auto const& box : boxes) {
    for_each_block(box, [&](std::uint64_t entry, DigestBox lines) {
      block.resize(span_bytes(lines));
      download(lines.data, block);
      lines.data = block.data();
      for_each_word_box(lines, [&](auto const& words) { sums[entry] += weigh(words); });
    });
    sums = sums.subspan(box.entries);
  }
}

void TorchDevice::finish() {
  in_python([](nb::object const& memory) { memory.attr("finish")(); });
}

void bind_device(nb::module_& module) {
  nb::class_<TorchDevice>(module, "Device").def(nb::init<nb::object>(), nb::arg("memory"));
}

}  // namespace rankslice::python

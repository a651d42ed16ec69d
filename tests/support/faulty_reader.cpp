#include "support/faulty_reader.hpp"

#include <algorithm>
#include <cerrno>

#include "io/positional.hpp"

namespace rankslice::test {

namespace {

::ssize_t fail(int error) {
  errno = error;
  return -1;
}

}  // namespace

void FaultyReader::read(std::span<std::byte> out, std::uint64_t offset) {
  auto const once = [this](std::byte* to, std::size_t size, std::uint64_t at) { return read_once(to, size, at); };
  read_fully(*this, once, out, offset);
}

::ssize_t FaultyReader::read_once(std::byte* out, std::size_t size, std::uint64_t offset) {
  ++calls_;
  if (faults_.interrupt_every > 0 && calls_ % faults_.interrupt_every == 0) return fail(EINTR);
  if (faults_.fails_at && offset >= *faults_.fails_at) return fail(faults_.error);
  auto const end = std::min(inner_->identity().size, faults_.ends_at.value_or(UINT64_MAX));
  if (offset >= end) return 0;
  auto const got = std::min({size, faults_.most_bytes, static_cast<std::size_t>(end - offset)});
  inner_->read({out, got}, offset);
  return static_cast<::ssize_t>(got);
}

}  // namespace rankslice::test

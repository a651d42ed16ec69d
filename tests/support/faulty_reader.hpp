#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "io/file.hpp"

namespace rankslice::test {

struct ReadFaults {
  std::size_t most_bytes = SIZE_MAX;           ///< Per call: more are asked for, fewer come.
  unsigned interrupt_every = 0;                ///< Every n-th call ends with EINTR; 0: none.
  std::optional<std::uint64_t> fails_at = {};  ///< A call that begins at or after this byte fails with `error`.
  int error = EIO;                             ///< What it fails with.
  std::optional<std::uint64_t> ends_at = {};   ///< The file ends here, whatever `identity` says.
};

/// Another reader behind system calls that misbehave as the faults say.
class FaultyReader final : public FileReader {
 public:
  FaultyReader(std::unique_ptr<FileReader> inner, ReadFaults faults) : inner_(std::move(inner)), faults_(faults) {}

  [[nodiscard]] std::string const& path() const override { return inner_->path(); }
  [[nodiscard]] FileIdentity identity() const override { return inner_->identity(); }
  void read(std::span<std::byte> out, std::uint64_t offset) override;
  [[nodiscard]] unsigned calls() const { return calls_; }

 private:
  ::ssize_t read_once(std::byte* out, std::size_t size, std::uint64_t offset);

  std::unique_ptr<FileReader> inner_;
  ReadFaults faults_;
  unsigned calls_ = 0;
};

}  // namespace rankslice::test

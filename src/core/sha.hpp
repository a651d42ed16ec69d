#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "core/unique_handle.hpp"

struct evp_md_ctx_st;

namespace rankslice {

enum class Sha : std::uint8_t { sha1, sha256 };

struct ShaTraits {
  using Handle = evp_md_ctx_st*;
  static Handle null() noexcept { return nullptr; }
  static void close(Handle context) noexcept;
};

/// SHA-1 or SHA-256 of bytes that come piece by piece, by OpenSSL.
class ShaStream {
 public:
  /// @throws UnexpectedError where OpenSSL has been told to refuse it
  explicit ShaStream(Sha kind);

  void add(std::span<std::byte const> bytes);
  /// Hex digits, 40 or 64, of everything added. Nothing can be added any more.
  [[nodiscard]] std::string hex();

 private:
  UniqueHandle<ShaTraits> context_;
};

}  // namespace rankslice

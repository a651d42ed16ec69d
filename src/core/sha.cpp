#include "core/sha.hpp"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <array>
#include <string_view>

#include "rankslice/error.hpp"

namespace rankslice {

namespace {

void check(int result, std::string_view call) {
  if (result != 1) throw UnexpectedError(fmt::format("OpenSSL: {} failed", call));
}

}  // namespace

void ShaTraits::close(Handle context) noexcept { EVP_MD_CTX_free(context); }

ShaStream::ShaStream(Sha kind) : context_(EVP_MD_CTX_new()) {
  auto const* const algorithm = kind == Sha::sha1 ? EVP_sha1() : EVP_sha256();
  check(EVP_DigestInit_ex(context_.get(), algorithm, nullptr), "EVP_DigestInit_ex");
}

void ShaStream::add(std::span<std::byte const> bytes) {
  check(EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size()), "EVP_DigestUpdate");
}

std::string ShaStream::hex() {
  std::array<unsigned char, EVP_MAX_MD_SIZE> hash{};
  unsigned int size = 0;
  check(EVP_DigestFinal_ex(context_.get(), hash.data(), &size), "EVP_DigestFinal_ex");
  std::string digits;
  for (auto const byte : std::span(hash).first(size)) fmt::format_to(std::back_inserter(digits), "{:02x}", byte);
  return digits;
}

}  // namespace rankslice

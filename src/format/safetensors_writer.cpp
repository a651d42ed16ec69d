#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <iterator>
#include <span>
#include <tuple>

#include "rankslice/error.hpp"

#include "core/checked.hpp"
#include "format/quote.hpp"
#include "format/safetensors.hpp"

namespace rankslice {

namespace {

using Tensor = SafetensorsHeader::Tensor;

constexpr std::size_t kLengthBytes = 8;

/// The place of a dtype in the reference implementation's order: ours, but for BOOL, which it has first.
int reference_order(DType dtype) { return dtype == DType::BOOL ? -1 : static_cast<int>(dtype); }

bool written_before(Tensor const& a, Tensor const& b) {
  return std::tuple(-reference_order(a.dtype), std::string_view(a.name)) <
         std::tuple(-reference_order(b.dtype), std::string_view(b.name));
}

/// A JSON string, escaped as serde_json does.
std::string json_string(std::string const& text) { return nlohmann::json(text).dump(); }

std::uint64_t size_of(Tensor const& tensor) {
  auto const bytes = checked_byte_size(tensor.dtype, tensor.shape);
  if (!bytes)
    throw FormatError(fmt::format("tensor {}: shape {} of {} is no whole number of bytes below 2^61",
                                  in_quotes(tensor.name), to_string(tensor.shape), name(tensor.dtype)),
                      {}, tensor.name);
  return *bytes;
}

std::string header_json(std::vector<Tensor> const& tensors, std::map<std::string, std::string> const& metadata) {
  std::string json = "{";
  auto const member = [&json](std::string const& key) {
    if (json.size() > 1) json += ',';
    json += json_string(key) + ':';
  };
  if (!metadata.empty()) {
    member("__metadata__");
    json += nlohmann::json(metadata).dump();
  }
  std::uint64_t begin = 0;
  for (auto const& tensor : tensors) {
    auto const end = begin + size_of(tensor);
    member(tensor.name);
    fmt::format_to(std::back_inserter(json), R"({{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})",
                   name(tensor.dtype), fmt::join(tensor.shape, ","), begin, end);
    begin = end;
  }
  return json + '}';
}

}  // namespace

std::vector<std::byte> make_safetensors_header(std::vector<Tensor> tensors,
                                               std::map<std::string, std::string> const& metadata) {
  std::ranges::sort(tensors, written_before);
  auto json = header_json(tensors, metadata);
  json.resize((json.size() + 7) / 8 * 8, ' ');
  if (json.size() > kMaxHeaderBytes)
    throw FormatError(fmt::format("a header of {} tensors: expected at most {} bytes, found {}", tensors.size(),
                                  kMaxHeaderBytes, json.size()));
  std::vector<std::byte> header(kLengthBytes + json.size());
  for (std::size_t i = 0; i < kLengthBytes; ++i) header[i] = static_cast<std::byte>(json.size() >> (8 * i));
  std::ranges::copy(std::as_bytes(std::span(json)), header.begin() + kLengthBytes);
  return header;
}

}  // namespace rankslice

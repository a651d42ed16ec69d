// Input: the size of the tensor data in decimal digits, a line feed, and the JSON of a header; without digits the raw
// beginning of a file, which is as long as the input.

#include <algorithm>
#include <charconv>
#include <map>
#include <tuple>

#include "format/safetensors.hpp"
#include "fuzz/fuzz.hpp"
#include "support/raw_safetensors.hpp"

namespace {

using namespace rankslice;
using namespace rankslice::fuzz;

constexpr auto kFile = "model.safetensors";
constexpr std::uint64_t kLargestFile = std::uint64_t{1} << 63;  // off_t has no more

struct Input {
  std::vector<std::byte> header;
  std::uint64_t file_size = 0;
};

Input input_of(std::string_view text) {
  auto json = text;
  auto const digits = take_until(json, "\n");
  std::uint64_t data_size = 0;
  auto const [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), data_size);
  if (error != std::errc{} || end != digits.data() + digits.size()) return {test::bytes_of(text), text.size()};
  auto header = test::raw_header(json);
  auto const file_size = std::min(data_size, kLargestFile - header.size()) + header.size();
  return {std::move(header), file_size};
}

/// A reader takes the length from the first bytes, and then as many as that.
SafetensorsHeader parse(Input const& input) {
  auto const size = safetensors_header_size(input.header, input.file_size, kFile);
  require(size <= input.file_size, "a header ends within its file");
  return parse_safetensors_header(std::span(input.header).first(size), input.file_size, kFile);
}

void require_tiling(SafetensorsHeader const& header, std::uint64_t file_size) {
  auto expected = header.size;
  for (auto const& tensor : header.tensors) {
    require(tensor.bytes.begin == expected && tensor.bytes.end >= expected, "tensors follow one another");
    require(tensor.bytes.size() == byte_size(tensor.dtype, tensor.shape), "an extent has the bytes of its shape");
    expected = tensor.bytes.end;
  }
  require(expected == file_size, "the tensors end with the file");
}

/// (dtype, shape) by name.
std::map<std::string, std::tuple<DType, Shape>> contents(std::vector<SafetensorsHeader::Tensor> const& tensors) {
  std::map<std::string, std::tuple<DType, Shape>> by_name;
  for (auto const& tensor : tensors) by_name[tensor.name] = {tensor.dtype, tensor.shape};
  return by_name;
}

void require_way_back(SafetensorsHeader const& header, std::uint64_t file_size) {
  auto const fresh = make_safetensors_header(header.tensors, header.metadata);
  auto const again = parse_safetensors_header(fresh, file_size - header.size + fresh.size(), kFile);
  require(contents(again.tensors) == contents(header.tensors), "a fresh header has the same tensors");
  require(again.metadata == header.metadata, "a fresh header has the same metadata");
  require(fresh.size() % 8 == 0, "a fresh header is aligned");
  auto const twice = make_safetensors_header(again.tensors, again.metadata);
  require(twice == fresh, "a fresh header of a fresh header is the same, byte for byte");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  auto const input = input_of(text_of(data, size));
  SafetensorsHeader header;
  if (accepts([&] { header = parse(input); })) {
    require_tiling(header, input.file_size);
    require_way_back(header, input.file_size);
  }
  return 0;
}

#include "format/safetensors.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

#include "rankslice/error.hpp"

#include "core/checked.hpp"
#include "format/name_table.hpp"
#include "format/quote.hpp"
#include "format/strict_json.hpp"
#include "io/file.hpp"

namespace rankslice {

namespace {

using Tensor = SafetensorsHeader::Tensor;
using simdjson::dom::array;
using simdjson::dom::element;
using simdjson::dom::object;

constexpr std::uint64_t kLengthBytes = 8;
constexpr std::string_view kMetadataKey = "__metadata__";

[[noreturn]] void refuse(std::string const& file, std::string const& problem) {
  throw FormatError(fmt::format("{}: {}", file, problem), file);
}

[[noreturn]] void refuse_tensor(std::string const& file, std::string_view tensor, std::string const& problem) {
  throw FormatError(fmt::format("{}: tensor {}: {}", file, in_quotes(tensor), problem), file, std::string(tensor));
}

std::uint64_t little_endian(std::span<std::byte const> bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < kLengthBytes; ++i) value |= std::to_integer<std::uint64_t>(bytes[i]) << (8 * i);
  return value;
}

/// The three fields of one tensor, read from its JSON. Offsets count from the start of the data here.
class TensorFields {
 public:
  TensorFields(std::string_view name, std::string const& file) : name_(name), file_(file) {}

  Tensor parse(element const& value) {
    object fields;
    if (value.get(fields) != simdjson::SUCCESS) fail(fmt::format("expected an object, found {}", excerpt(value)));
    for (auto const [key, field] : fields) {
      if (key == "dtype") set(dtype_, key, parse_dtype_field(field));
      if (key == "shape") set(shape_, key, parse_integers(key, field));
      if (key == "data_offsets") set(offsets_, key, parse_offsets(field));
    }
    auto const offsets = required(offsets_, "data_offsets");
    return {std::string(name_), required(dtype_, "dtype"), required(shape_, "shape"), offsets};
  }

 private:
  [[noreturn]] void fail(std::string const& problem) const { refuse_tensor(file_, name_, problem); }

  [[noreturn]] void fail(std::string_view key, std::string_view expected, element const& found) const {
    fail(fmt::format("{}: expected {}, found {}", key, expected, excerpt(found)));
  }

  template <typename Value>
  void set(std::optional<Value>& field, std::string_view key, Value value) const {
    if (field) fail(fmt::format("{} is given twice", key));
    field = std::move(value);
  }

  template <typename Value>
  Value required(std::optional<Value>& field, std::string_view key) const {
    if (!field) fail(fmt::format("expected the field {}, found none", key));
    return std::move(*field);
  }

  DType parse_dtype_field(element const& value) const {
    std::string_view text;
    if (value.get(text) != simdjson::SUCCESS) fail("dtype", "a string", value);
    auto const dtype = parse_dtype(text);
    if (!dtype) fail("dtype", "one that the format knows (BF16, F32, …)", value);
    return *dtype;
  }

  std::vector<std::uint64_t> parse_integers(std::string_view key, element const& value) const {
    array items;
    if (value.get(items) != simdjson::SUCCESS) fail(key, "an array", value);
    std::vector<std::uint64_t> integers;
    integers.reserve(items.size());
    for (auto const item : items) {
      if (item.get(integers.emplace_back()) != simdjson::SUCCESS) fail(key, "integers from 0 to 2^64-1", item);
    }
    return integers;
  }

  Range parse_offsets(element const& value) const {
    auto const offsets = parse_integers("data_offsets", value);
    if (offsets.size() != 2) fail(fmt::format("data_offsets: expected 2 items, found {}", offsets.size()));
    return {offsets[0], offsets[1]};
  }

  std::string_view name_;
  std::string const& file_;
  std::optional<DType> dtype_;
  std::optional<Shape> shape_;
  std::optional<Range> offsets_;
};

std::map<std::string, std::string> parse_metadata(element const& value, std::string const& file) {
  object entries;
  if (value.get(entries) != simdjson::SUCCESS)
    refuse(file, fmt::format("{}: expected an object, found {}", kMetadataKey, excerpt(value)));
  std::map<std::string, std::string> metadata;
  for (auto const [key, entry] : entries) {
    std::string_view text;
    if (entry.get(text) != simdjson::SUCCESS)
      refuse(file, fmt::format("{}: {}: expected a string, found {}", kMetadataKey, in_quotes(key), excerpt(entry)));
    if (!metadata.emplace(key, text).second)
      refuse(file, fmt::format("{}: {} is given twice", kMetadataKey, in_quotes(key)));
  }
  return metadata;
}

Tensor parse_tensor(std::string_view name, element const& value, std::string const& file) {
  if (name.find('\0') != std::string_view::npos)
    refuse_tensor(file, name, "the name contains a NUL byte, which neither C nor HDF5 can carry");
  return TensorFields(name, file).parse(value);
}

void refuse_duplicates(std::vector<Tensor> const& tensors, std::string const& file) {
  std::vector<std::string_view> names;
  names.reserve(tensors.size());
  for (auto const& tensor : tensors) names.push_back(tensor.name);
  if (auto const duplicate = NameTable(std::move(names)).duplicate())
    refuse_tensor(
        file, tensors[duplicate->first].name,
        fmt::format("the name is given twice, as number {} and {} of the header", duplicate->first, duplicate->second));
}

void check_begin(std::vector<Tensor> const& tensors, std::size_t i, std::string const& file) {
  auto const& [begin, end] = tensors[i].bytes;
  auto const expected = i == 0 ? 0 : tensors[i - 1].bytes.end;
  if (begin == expected && end >= begin) return;
  auto const problem = end < begin        ? std::string("the end comes before the begin")
                       : begin > expected ? fmt::format("a hole of {} bytes comes before it", begin - expected)
                                          : fmt::format("it overlaps the tensor {}", in_quotes(tensors[i - 1].name));
  refuse_tensor(
      file, tensors[i].name,
      fmt::format("data_offsets: expected to begin at {}, found [{}, {}]: {}", expected, begin, end, problem));
}

void check_size(Tensor const& tensor, std::string const& file) {
  auto const bytes = checked_byte_size(tensor.dtype, tensor.shape);
  if (bytes == tensor.bytes.size()) return;
  auto const shape = shortened(to_string(tensor.shape), 200);
  if (!bytes)
    refuse_tensor(file, tensor.name,
                  fmt::format("shape {} of {} is no whole number of bytes below 2^61", shape, name(tensor.dtype)));
  refuse_tensor(file, tensor.name,
                fmt::format("data_offsets: expected {} bytes for shape {} of {}, found [{}, {}] with {}", *bytes, shape,
                            name(tensor.dtype), tensor.bytes.begin, tensor.bytes.end, tensor.bytes.size()));
}

/// The tensors, sorted, cover the data of the file exactly: no hole, no overlap, nothing after the last.
void check_offsets(std::vector<Tensor> const& tensors, std::uint64_t header_size, std::uint64_t file_size,
                   std::string const& file) {
  auto const data_size = file_size - header_size;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    auto const& tensor = tensors[i];
    check_begin(tensors, i, file);
    check_size(tensor, file);
    if (tensor.bytes.end > data_size)
      refuse_tensor(file, tensor.name,
                    fmt::format("the file is cut off: expected {} bytes of data after the {} of the header, found {}",
                                tensor.bytes.end, header_size, data_size));
  }
  auto const end = header_size + (tensors.empty() ? 0 : tensors.back().bytes.end);
  if (end != file_size)
    refuse(file, fmt::format("expected the file to end with its last tensor at byte {}, found {} more bytes", end,
                             file_size - end));
}

}  // namespace

std::uint64_t safetensors_header_size(std::span<std::byte const> first_bytes, std::uint64_t file_size,
                                      std::string const& file) {
  if (file_size < kLengthBytes || first_bytes.size() < kLengthBytes)
    refuse(file, fmt::format("expected at least the {} bytes of a header length, found a file of {} bytes",
                             kLengthBytes, file_size));
  constexpr std::string_view kPointer = "version ";  // how the file begins that git leaves in place of a large one
  if (std::ranges::equal(first_bytes.first(kLengthBytes), std::as_bytes(std::span(kPointer))))
    refuse(file, "is a pointer of git-lfs, not the file itself; fetch it with git lfs pull");
  auto const length = little_endian(first_bytes);
  if (length > kMaxHeaderBytes)
    refuse(file, fmt::format("header length at byte 0: expected at most {}, found {}", kMaxHeaderBytes, length));
  if (length > file_size - kLengthBytes)
    refuse(file, fmt::format("the file is cut off: expected a header of {} bytes at byte {}, found a file of {} bytes",
                             length, kLengthBytes, file_size));
  return kLengthBytes + length;
}

SafetensorsHeader parse_safetensors_header(std::span<std::byte const> header, std::uint64_t file_size,
                                           std::string const& file) {
  SafetensorsHeader result;
  result.size = safetensors_header_size(header, file_size, file);
  if (header.size() != result.size)
    refuse(file, fmt::format("expected {} bytes of header, found {}", result.size, header.size()));

  StrictJson const json(header.subspan(kLengthBytes), kLengthBytes, file);
  bool has_metadata = false;
  result.tensors.reserve(json.root().size());
  for (auto const [key, value] : json.root()) {
    if (key != kMetadataKey) {
      result.tensors.push_back(parse_tensor(key, value, file));
      continue;
    }
    if (std::exchange(has_metadata, true)) refuse(file, fmt::format("{} is given twice", kMetadataKey));
    result.metadata = parse_metadata(value, file);
  }
  refuse_duplicates(result.tensors, file);
  std::ranges::sort(result.tensors, {}, [](Tensor const& tensor) {
    return std::tuple(tensor.bytes.begin, tensor.bytes.end, std::string_view(tensor.name));
  });
  check_offsets(result.tensors, result.size, file_size, file);
  for (auto& [name, dtype, shape, bytes] : result.tensors) bytes = {bytes.begin + result.size, bytes.end + result.size};
  return result;
}

std::vector<std::byte> read_safetensors_header(FileReader& reader, std::string const& file) {
  auto const file_size = reader.identity().size;
  std::vector<std::byte> header(std::min(file_size, kLengthBytes));
  reader.read(header, 0);
  header.resize(safetensors_header_size(header, file_size, file));
  reader.read(std::span(header).subspan(kLengthBytes), kLengthBytes);
  return header;
}

}  // namespace rankslice

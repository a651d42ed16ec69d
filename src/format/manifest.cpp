#include "format/manifest.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <charconv>
#include <numeric>

#include "rankslice/error.hpp"

#include "core/checked.hpp"
#include "core/json_object.hpp"
#include "format/quote.hpp"

namespace rankslice {

namespace {

using nlohmann::json;

constexpr std::string_view kSchema = "rankslice.manifest/1";
constexpr std::string_view kDigest = "digest/1";
constexpr std::size_t kHashDigits = 32;
constexpr std::size_t kDigestDigits = 16;

bool is_hex(std::string_view text, std::size_t digits) {
  auto const is_digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  return text.size() == digits && std::ranges::all_of(text, is_digit);
}

/// A value of the manifest, and where it stands.
class Node {
 public:
  Node(json const& value, std::string place, std::string const& path, std::string_view tensor = {})
      : value_(value), place_(std::move(place)), path_(path), tensor_(tensor) {}

  template <typename SomeError = FormatError>
  [[noreturn]] void fail(std::string const& problem) const {
    throw SomeError(fmt::format("{}: {}{}{}", path_, place_, place_.empty() ? "" : ": ", problem), path_,
                    std::string(tensor_));
  }
  template <typename SomeError = FormatError>
  [[noreturn]] void fail_expected(std::string_view expected) const {
    fail<SomeError>(fmt::format("expected {}, found {}", expected,
                                shortened(value_.dump(-1, ' ', false, json::error_handler_t::replace), 80)));
  }

  [[nodiscard]] json const& value() const { return value_; }
  [[nodiscard]] bool has(char const* name) const { return value_.contains(name); }
  [[nodiscard]] Node at(char const* name) const {
    if (!value_.is_object()) fail_expected("an object");
    auto const found = value_.find(name);
    if (found == value_.end()) fail(fmt::format("expected a member {}, found none", name));
    return {*found, place_.empty() ? name : fmt::format("{}: {}", place_, name), path_, tensor_};
  }
  [[nodiscard]] std::string const& text() const {
    if (!value_.is_string()) fail_expected("a text");
    return value_.get_ref<std::string const&>();
  }
  [[nodiscard]] std::uint64_t number() const {
    if (!value_.is_number_unsigned()) fail_expected("a whole number below 2^64");
    return value_.get<std::uint64_t>();
  }
  [[nodiscard]] std::string const& hash() const {
    if (!value_.is_string() || !is_hex(text(), kHashDigits)) fail_expected("32 hexadecimal digits");
    return text();
  }
  [[nodiscard]] json const& list() const {
    if (!value_.is_array()) fail_expected("a list");
    return value_;
  }
  [[nodiscard]] json const& members() const {
    if (!value_.is_object()) fail_expected("an object");
    return value_;
  }

 private:
  json const& value_;
  std::string place_;
  std::string const& path_;
  std::string_view tensor_;
};

void expect_version(Node const& node, std::string_view version) {
  auto const& found = node.text();
  if (found == version) return;
  auto const expected = fmt::format("{}, the version that is read here", version);
  auto const name = version.substr(0, version.find('/') + 1);
  if (found.starts_with(name)) node.fail_expected<OtherManifestVersion>(expected);
  node.fail_expected(expected);
}

Shape parse_shape(Node const& node, DType dtype) {
  Shape shape;
  for (auto const& axis : node.list()) {
    if (!axis.is_number_unsigned()) node.fail_expected("whole numbers");
    shape.push_back(axis.get<std::uint64_t>());
  }
  if (!checked_byte_size(dtype, shape)) node.fail(fmt::format("{} {} has no size", name(dtype), to_string(shape)));
  return shape;
}

std::vector<std::uint64_t> parse_digests(Node const& node, Shape const& shape) {
  std::vector<std::uint64_t> digests;
  for (auto const& item : node.list()) {
    if (!item.is_string() || !is_hex(item.get_ref<std::string const&>(), kDigestDigits))
      node.fail_expected("16 hexadecimal digits for each digest");
    auto const& text = item.get_ref<std::string const&>();
    std::from_chars(text.data(), text.data() + text.size(), digests.emplace_back(), 16);
  }
  auto const has_list = shape.size() >= 3;
  auto const entries = has_list && element_count(shape) > 0 ? shape.front() : 0;
  if (digests.size() != entries + 1) {
    node.fail(
        fmt::format("expected {} digests for the shape {}, found {}", entries + 1, to_string(shape), digests.size()));
  }
  auto const sum = std::accumulate(digests.begin() + 1, digests.end(), std::uint64_t{0});
  if (entries > 0 && sum != digests.front()) node.fail("the digests do not add up");
  return digests;
}

Manifest::Tensor parse_tensor(std::string const& key, json const& value, std::string const& path) {
  Node const node(value, fmt::format("tensor {}", in_quotes(key)), path, key);
  auto const dtype_node = node.at("dtype");
  auto const dtype = parse_dtype(dtype_node.text());
  if (!dtype) dtype_node.fail_expected("a dtype of safetensors");
  auto shape = parse_shape(node.at("shape"), *dtype);
  auto digests = parse_digests(node.at("digests"), shape);
  return {.key = key, .dtype = *dtype, .shape = std::move(shape), .digests = std::move(digests)};
}

std::string line_of(Manifest::File const& file) {
  return fmt::format("{}: {}", json(file.name).dump(), json{{"size", file.size}, {"header", file.header}}.dump());
}

std::string line_of(Manifest::Tensor const& tensor) {
  std::string digests;
  for (auto const digest : tensor.digests) {
    fmt::format_to(std::back_inserter(digests), "{}\"{:016x}\"", digests.empty() ? "" : ",", digest);
  }
  return fmt::format(R"({}: {{"dtype":"{}","shape":{},"digests":[{}]}})", json(tensor.key).dump(), name(tensor.dtype),
                     json(tensor.shape).dump(), digests);
}

template <typename Item>
std::string lines_of(std::vector<Item> const& items) {
  std::string lines;
  for (auto const& item : items) lines += fmt::format("{}\n  {}", lines.empty() ? "" : ",", line_of(item));
  return lines;
}

}  // namespace

std::string to_text(Manifest const& manifest, std::string const& path) {
  try {
    auto const index =
        manifest.index_name.empty() ? json() : json{{"name", manifest.index_name}, {"xxh3_128", manifest.index}};
    return fmt::format(
        "{{\n \"schema\": \"{}\",\n \"digest\": \"{}\",\n \"created_by\": {},\n \"files\": {{{}\n }},\n"
        " \"index\": {},\n \"tensors\": {{{}\n }}\n}}\n",
        kSchema, kDigest, json(manifest.created_by).dump(), lines_of(manifest.files), index.dump(),
        lines_of(manifest.tensors));
  } catch (json::type_error const&) {
    throw FormatError(path + ": cannot be written: a file has a name that is not UTF-8", path);
  }
}

Manifest parse_manifest(std::string_view text, std::string const& path) {
  auto const document = parse_json_object(text, path, path);
  Node const root(document, {}, path);
  expect_version(root.at("schema"), kSchema);
  expect_version(root.at("digest"), kDigest);
  Manifest manifest{
      .created_by = root.at("created_by").text(), .files = {}, .index_name = {}, .index = {}, .tensors = {}};
  for (auto const& [name, value] : root.at("files").members().items()) {
    Node const file(value, fmt::format("file {}", in_quotes(name)), path);
    manifest.files.push_back({.name = name, .size = file.at("size").number(), .header = file.at("header").hash()});
  }
  if (auto const index = root.at("index"); !index.value().is_null()) {
    manifest.index_name = index.at("name").text();
    if (manifest.index_name.empty()) index.fail("expected a name, found none");
    manifest.index = index.at("xxh3_128").hash();
  }
  for (auto const& [key, value] : root.at("tensors").members().items()) {
    manifest.tensors.push_back(parse_tensor(key, value, path));
  }
  return manifest;
}

}  // namespace rankslice

#include "format/strict_json.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <optional>
#include <string_view>

#include "rankslice/error.hpp"

#include "format/quote.hpp"

namespace rankslice {

namespace {

constexpr int kMaxDepth = 1024;  // simdjson's own default

/// Says where and why a text is refused; simdjson only says that it is. Only run on texts that simdjson has refused.
class Diagnosis : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::optional<std::size_t> position;  ///< Of the last byte read.
  std::string member;                   ///< Of the root, in which the error is; empty before the first.
  std::string reason;

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, string_t const& text) override {
    if (text.find_first_of(".eE") != string_t::npos) return true;
    reason = fmt::format("expected an integer below 2^64, found {}", in_quotes(text));
    return false;
  }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return enter(); }
  bool key(string_t& name) override {
    if (depth_ == 1) member = name;
    return true;
  }
  bool end_object() override { return leave(); }
  bool start_array(std::size_t) override { return enter(); }
  bool end_array() override { return leave(); }
  bool parse_error(std::size_t at, std::string const&, nlohmann::detail::exception const&) override {
    position = at == 0 ? 0 : at - 1;
    return false;
  }

 private:
  bool enter() {
    if (++depth_ <= kMaxDepth) return true;
    reason = fmt::format("nested deeper than {} levels", kMaxDepth);
    return false;
  }
  bool leave() {
    --depth_;
    return true;
  }

  int depth_ = 0;
};

[[noreturn]] void refuse(std::string_view text, std::size_t offset, std::string const& file,
                         simdjson::error_code error) {
  Diagnosis diagnosis;
  diagnosis.reason = simdjson::error_message(error);
  auto const found_no_fault = nlohmann::json::sax_parse(text, &diagnosis);
  // To the second parser a NUL byte is the end of the text.
  if (auto const nul = text.find('\0'); found_no_fault && nul != text.npos) diagnosis.position = nul;
  auto const place = diagnosis.position ? fmt::format(" near byte {}", offset + *diagnosis.position) : "";
  auto const member = diagnosis.member.empty() ? "" : fmt::format(", at {}", in_quotes(diagnosis.member));
  throw FormatError(fmt::format("{}: not valid JSON{}{}: {}", file, place, member, diagnosis.reason), file,
                    diagnosis.member);
}

/// An object begins with a brace, so that a megabyte of something else is refused at its first byte.
void expect_brace(std::string_view text, std::size_t offset, std::string const& file) {
  auto const begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos)
    throw FormatError(fmt::format("{}: expected a JSON object at byte {}, found {}", file, offset,
                                  text.empty() ? "no bytes" : "only white space"),
                      file);
  if (text[begin] == '{') return;
  auto const found =
      text.substr(begin).starts_with("\xef\xbb\xbf") ? "a byte order mark" : in_quotes(text.substr(begin, 1));
  throw FormatError(fmt::format("{}: expected '{{' at byte {}, found {}", file, offset + begin, found), file);
}

}  // namespace

StrictJson::StrictJson(std::span<std::byte const> bytes, std::size_t offset, std::string const& file) {
  std::string_view const text(reinterpret_cast<char const*>(bytes.data()), bytes.size());
  expect_brace(text, offset, file);
  auto const error = parser_.parse(text.data(), text.size()).get(root_);
  if (error != simdjson::SUCCESS) refuse(text, offset, file, error);
}

std::string excerpt(simdjson::dom::element const& value) { return shortened(simdjson::minify(value), 80); }

}  // namespace rankslice

#include "core/json_object.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <set>
#include <vector>

#include "rankslice/error.hpp"

namespace rankslice {

namespace {

using nlohmann::json;

constexpr std::size_t kMaxDepth = 1024;

/// Stops at what the parser itself does not mind.
class Check final : public nlohmann::json_sax<json> {
 public:
  std::string fault;

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, string_t const&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return enter(); }
  bool end_object() override { return leave(); }
  bool start_array(std::size_t) override { return enter(); }
  bool end_array() override { return leave(); }
  bool key(string_t& name) override {
    if (names_.back().insert(name).second) return true;
    fault = fmt::format("{} is given twice", name);
    return false;
  }
  bool parse_error(std::size_t, std::string const&, nlohmann::detail::exception const&) override {
    fault = "no valid JSON";
    return false;
  }

 private:
  bool enter() {
    names_.emplace_back();
    if (names_.size() <= kMaxDepth) return true;
    fault = fmt::format("nested deeper than {} levels", kMaxDepth);
    return false;
  }
  bool leave() {
    names_.pop_back();
    return true;
  }

  std::vector<std::set<std::string>> names_;  ///< Of the objects around the place that is parsed; of arrays none.
};

}  // namespace

json parse_json_object(std::string_view text, std::string const& place, std::string const& file) {
  auto const fail = [&](std::string const& problem) { throw FormatError(fmt::format("{}: {}", place, problem), file); };
  // To the parser a NUL byte is the end of the text.
  if (text.find('\0') != std::string_view::npos) fail("no valid JSON: it contains a NUL byte");
  Check check;
  if (!json::sax_parse(text, &check)) fail(check.fault);
  auto value = json::parse(text);
  if (!value.is_object()) fail(fmt::format("expected an object, found {}", value.type_name()));
  return value;
}

}  // namespace rankslice

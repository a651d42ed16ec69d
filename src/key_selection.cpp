#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <array>
#include <memory>

#include "rankslice/checkpoint.hpp"
#include "rankslice/error.hpp"

#include "core/unique_handle.hpp"

namespace rankslice {

namespace {

std::string reason_of(int error) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(error, text.data(), text.size());
  return reinterpret_cast<char const*>(text.data());
}

struct CodeTraits {
  using Handle = pcre2_code*;
  static Handle null() noexcept { return nullptr; }
  static void close(Handle code) noexcept { pcre2_code_free(code); }
};

struct GroupsTraits {
  using Handle = pcre2_match_data*;
  static Handle null() noexcept { return nullptr; }
  static void close(Handle groups) noexcept { pcre2_match_data_free(groups); }
};

/// A regular expression that is to match from the first character on.
class KeyPattern {
 public:
  /// `name` is what the pattern is called in messages.
  KeyPattern(std::string pattern, std::string name) : pattern_(std::move(pattern)), name_(std::move(name)) {
    constexpr auto kAsPython = PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED;
    auto const* const text = reinterpret_cast<PCRE2_SPTR>(pattern_.data());
    int error = 0;
    PCRE2_SIZE position = 0;
    code_.reset(pcre2_compile(text, pattern_.size(), kAsPython, &error, &position, nullptr));
    if (code_.valid()) return;
    throw UsageError(fmt::format("{} '{}': at character {}: {}", name_, pattern_, position, reason_of(error)));
  }

  [[nodiscard]] bool matches(std::string_view key) const {
    UniqueHandle<GroupsTraits> const groups(pcre2_match_data_create_from_pattern(code_.get(), nullptr));
    auto const* const text = reinterpret_cast<PCRE2_SPTR>(key.data());
    auto const result = pcre2_match(code_.get(), text, key.size(), 0, 0, groups.get(), nullptr);
    if (result >= 0) return true;
    if (result == PCRE2_ERROR_NOMATCH) return false;
    throw UsageError(fmt::format("{} '{}': {}: {}", name_, pattern_, key, reason_of(result)));  // it backtracks too far
  }

 private:
  std::string pattern_, name_;
  UniqueHandle<CodeTraits> code_;
};

}  // namespace

KeySelection key_selection(std::string const& include, std::string const& exclude) {
  if (include.empty() && exclude.empty()) return {};
  // An empty pattern would match every key. Shared, as a selection can be copied.
  auto const pattern = [](std::string const& text, std::string name) {
    return text.empty() ? nullptr : std::make_shared<KeyPattern const>(text, std::move(name));
  };
  return [included = pattern(include, "include"), excluded = pattern(exclude, "exclude")](std::string_view key) {
    return (!included || included->matches(key)) && !(excluded && excluded->matches(key));
  };
}

}  // namespace rankslice

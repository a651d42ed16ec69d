#include "model/key_pattern.hpp"

#include <algorithm>

namespace rankslice {

namespace {

constexpr std::string_view kLayer = "{L}";

// Cuts `[text]` or `{name}` off the front of a pattern and returns what is between the brackets.
std::string_view take_bracketed(std::string_view& pattern, char closing) {
  auto const end = pattern.find(closing);
  auto const inner = pattern.substr(1, end - 1);
  pattern.remove_prefix(end + 1);
  return inner;
}

// These three are asked for every tensor and every rule, and are over after a few characters: plain loops, no calls.
std::string_view take_digits(std::string_view& key) {
  std::size_t count = 0;
  while (count < key.size() && key[count] >= '0' && key[count] <= '9') ++count;
  auto const digits = key.substr(0, count);
  key.remove_prefix(count);
  return digits;
}

std::string_view literal_at_front(std::string_view pattern) {
  std::size_t count = 0;
  while (count < pattern.size() && pattern[count] != '[' && pattern[count] != '{') ++count;
  return pattern.substr(0, count);
}

std::string_view literal_at_end(std::string_view pattern) {
  auto begin = pattern.size();
  while (begin > 0 && pattern[begin - 1] != ']' && pattern[begin - 1] != '}') --begin;
  return pattern.substr(begin);
}

bool match_rest(std::string_view pattern, std::string_view key, KeyPlaces& places) {
  while (!pattern.empty()) {
    if (pattern.front() == '[') {
      auto const optional = take_bracketed(pattern, ']');
      if (key.starts_with(optional) && match_rest(pattern, key.substr(optional.size()), places)) return true;
    } else if (pattern.front() == '{') {
      auto& place = take_bracketed(pattern, '}') == "L" ? places.layer : places.expert;
      place = take_digits(key);
      if (place.empty()) return false;
    } else {
      auto const literal = literal_at_front(pattern);
      if (!key.starts_with(literal)) return false;
      key.remove_prefix(literal.size());
      pattern.remove_prefix(literal.size());
    }
  }
  return key.empty();
}

}  // namespace

std::optional<KeyPlaces> match_key(std::string_view pattern, std::string_view key) {
  if (!key.ends_with(literal_at_end(pattern))) return std::nullopt;  // most keys that do not match end otherwise
  KeyPlaces places;
  if (!match_rest(pattern, key, places)) return std::nullopt;
  return places;
}

std::string fill_key(std::string_view pattern, KeyPlaces const& places) {
  std::string key;
  while (!pattern.empty()) {
    if (pattern.front() == '{') {
      key += take_bracketed(pattern, '}') == "L" ? places.layer : places.expert;
    } else {
      auto const literal = pattern.substr(0, std::min(pattern.find('{'), pattern.size()));
      key += literal;
      pattern.remove_prefix(literal.size());
    }
  }
  return key;
}

std::string_view up_to_layer(std::string_view pattern) {
  return pattern.substr(0, pattern.find(kLayer) + kLayer.size());
}

std::string_view after_layer(std::string_view pattern) { return pattern.substr(up_to_layer(pattern).size()); }

}  // namespace rankslice

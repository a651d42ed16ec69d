#include "synth/tokenizer.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>

namespace rankslice {

namespace {

using nlohmann::json;

struct Merge {
  std::string_view left, right;
};

// "Ġ" is how byte-level BPE writes a space.
constexpr std::array kMerges{Merge{"Ġ", "t"}, Merge{"h", "e"}, Merge{"Ġt", "he"}};

constexpr std::array<std::string_view, 7> kSpecialTokens{"<|endoftext|>",    "<|im_start|>",   "<|im_end|>",
                                                         "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
                                                         "<|video_pad|>"};

/// Characters and merged tokens by id; the special tokens come after them.
std::vector<std::string> words() {
  std::vector<std::string> words;
  for (char character = '!'; character <= '~'; ++character) words.emplace_back(1, character);
  words.emplace_back("Ġ");
  for (auto const& merge : kMerges) words.push_back(std::string(merge.left) + std::string(merge.right));
  return words;
}

json vocabulary() {
  auto ids = json::object();
  for (auto const& word : words()) ids[word] = ids.size();
  return ids;
}

std::vector<std::string> merges() {
  std::vector<std::string> lines;
  for (auto const& merge : kMerges) lines.push_back(std::string(merge.left) + " " + std::string(merge.right));
  return lines;
}

json added_token(std::string_view token) {
  return {{"content", token}, {"lstrip", false},      {"normalized", false},
          {"rstrip", false},  {"single_word", false}, {"special", true}};
}

json tokenizer_json() {
  auto added = json::array();
  for (auto const token : kSpecialTokens) {
    added.push_back(added_token(token));
    added.back()["id"] = special_token_id(token);
  }
  json const byte_level{
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", true}};
  json const model{{"type", "BPE"},
                   {"dropout", nullptr},
                   {"unk_token", nullptr},
                   {"continuing_subword_prefix", ""},
                   {"end_of_word_suffix", ""},
                   {"fuse_unk", false},
                   {"byte_fallback", false},
                   {"vocab", vocabulary()},
                   {"merges", merges()}};
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", std::move(added)},
          {"normalizer", {{"type", "NFC"}}},
          {"pre_tokenizer", byte_level},
          {"post_processor", byte_level},
          {"decoder", byte_level},
          {"model", model}};
}

json tokenizer_config_json() {
  auto decoder = json::object();
  for (auto const token : kSpecialTokens) decoder[std::to_string(special_token_id(token))] = added_token(token);
  return {{"added_tokens_decoder", std::move(decoder)},
          {"bos_token", nullptr},
          {"clean_up_tokenization_spaces", false},
          {"eos_token", "<|im_end|>"},
          {"errors", "replace"},
          {"model_max_length", 262144},
          {"pad_token", "<|endoftext|>"},
          {"split_special_tokens", false},
          {"tokenizer_class", "Qwen2Tokenizer"},
          {"unk_token", nullptr}};
}

std::string merges_text() {
  std::string text = "#version: 0.2\n";
  for (auto const& line : merges()) text += line + "\n";
  return text;
}

}  // namespace

std::uint64_t special_token_id(std::string_view token) {
  auto const found = std::ranges::find(kSpecialTokens, token);
  if (found == kSpecialTokens.end()) throw std::out_of_range("no special token " + std::string(token));
  return words().size() + static_cast<std::uint64_t>(found - kSpecialTokens.begin());
}

std::vector<TextFile> tokenizer_files() {
  return {{"tokenizer.json", tokenizer_json().dump(2) + "\n"},
          {"tokenizer_config.json", tokenizer_config_json().dump(2) + "\n"},
          {"vocab.json", vocabulary().dump() + "\n"},
          {"merges.txt", merges_text()}};
}

}  // namespace rankslice

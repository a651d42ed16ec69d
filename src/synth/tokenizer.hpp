#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "synth/text_file.hpp"

namespace rankslice {

/// The id of one of Qwen's special tokens, `<|im_end|>` for example, in the synthetic tokenizer: the real ones lie
/// beyond the vocabularies of small presets. @throws std::out_of_range for others.
[[nodiscard]] std::uint64_t special_token_id(std::string_view token);

/// tokenizer.json, tokenizer_config.json, vocab.json and merges.txt of a byte-level BPE tokenizer for printable ASCII,
/// with fewer than 128 tokens.
[[nodiscard]] std::vector<TextFile> tokenizer_files();

}  // namespace rankslice

#include "synth/side_files.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "synth/config_json.hpp"
#include "synth/tokenizer.hpp"

namespace rankslice {

namespace {

using nlohmann::json;

constexpr auto kReadme = R"(---
license: apache-2.0
pipeline_tag: {}
---

# Synthetic {}

Names, shapes, dtypes and files of a real checkpoint; the values are a hash of seed, tensor name and element index.
Good for testing loaders, of no use for inference.
)";

constexpr auto kLicense = R"(Copyright the rankslice authors

Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with the
License. You may obtain a copy of the License at

    http://www.apache.org/licenses/LICENSE-2.0

Unless required by applicable law or agreed to in writing, software distributed under the License is distributed on an
"AS IS" BASIS, WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the License for the specific
language governing permissions and limitations under the License.
)";

constexpr auto kGitAttributes = R"(*.safetensors filter=lfs diff=lfs merge=lfs -text
tokenizer.json filter=lfs diff=lfs merge=lfs -text
)";

constexpr auto kChatTemplate = R"({%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- endif %}
)";

std::string generation_config_json() {
  json const config{{"bos_token_id", special_token_id("<|endoftext|>")},
                    {"do_sample", true},
                    {"eos_token_id", {special_token_id("<|im_end|>"), special_token_id("<|endoftext|>")}},
                    {"pad_token_id", special_token_id("<|endoftext|>")},
                    {"temperature", 0.6},
                    {"top_k", 20},
                    {"top_p", 0.95}};
  return config.dump(2) + "\n";
}

std::string preprocessor_config_json(VisionDims const& vision) {
  json const config{{"image_mean", {0.5, 0.5, 0.5}},
                    {"image_processor_type", "Qwen2VLImageProcessorFast"},
                    {"image_std", {0.5, 0.5, 0.5}},
                    {"merge_size", vision.merge},
                    {"patch_size", vision.patch},
                    {"processor_class", "Qwen3VLProcessor"},
                    {"size", {{"longest_edge", 16777216}, {"shortest_edge", 65536}}},
                    {"temporal_patch_size", vision.temporal_patch}};
  return config.dump(2) + "\n";
}

std::string video_preprocessor_config_json(VisionDims const& vision) {
  json const config{{"image_mean", {0.5, 0.5, 0.5}},
                    {"image_std", {0.5, 0.5, 0.5}},
                    {"merge_size", vision.merge},
                    {"patch_size", vision.patch},
                    {"processor_class", "Qwen3VLProcessor"},
                    {"size", {{"longest_edge", 25165824}, {"shortest_edge", 4096}}},
                    {"temporal_patch_size", vision.temporal_patch},
                    {"video_processor_type", "Qwen3VLVideoProcessor"}};
  return config.dump(2) + "\n";
}

}  // namespace

std::vector<TextFile> side_files(SynthModel const& model) {
  auto const vl = model.family == SynthFamily::qwen3_vl_moe;
  auto const vision = has_vision(model);
  auto const& kind = architecture(model.family);
  auto files = tokenizer_files();
  files.push_back({"config.json", config_json(model)});
  files.push_back({"generation_config.json", generation_config_json()});
  files.push_back({".gitattributes", kGitAttributes});
  files.push_back({"README.md", fmt::format(kReadme, vision ? "image-text-to-text" : "text-generation", kind.title)});
  if (vision) files.push_back({"preprocessor_config.json", preprocessor_config_json(model.dims.vision)});
  if (vl) {
    files.push_back({"chat_template.json", json{{"chat_template", kChatTemplate}}.dump(2) + "\n"});
    files.push_back({"video_preprocessor_config.json", video_preprocessor_config_json(model.dims.vision)});
  } else {
    files.push_back({"chat_template.jinja", kChatTemplate});
    files.push_back({"LICENSE", kLicense});
  }
  return files;
}

}  // namespace rankslice

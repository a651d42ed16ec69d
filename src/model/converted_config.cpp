#include "model/converted_config.hpp"

#include <nlohmann/json.hpp>

#include <string>
#include <string_view>

#include "rankslice/error.hpp"

#include "model/torch_dtype.hpp"

namespace rankslice {

namespace {

using Json = nlohmann::ordered_json;

void convert(Json& object, std::string_view dtype) {
  object.erase("quantization_config");
  for (auto const* member : {"dtype", "torch_dtype"}) {
    if (object.contains(member)) object[member] = dtype;
  }
}

}  // namespace

std::vector<std::byte> convert_config(std::span<std::byte const> config_json, DType dtype) {
  auto const* const begin = reinterpret_cast<char const*>(config_json.data());
  auto config = Json::parse(begin, begin + config_json.size(), nullptr, false);
  if (!config.is_object()) throw FormatError("config.json: expected a JSON object", "config.json");
  convert(config, torch_name(dtype));
  for (auto const* nested : {"text_config", "vision_config"}) {
    if (config.contains(nested) && config[nested].is_object()) convert(config[nested], torch_name(dtype));
  }
  auto const text = config.dump(2, ' ', true) + '\n';
  auto const bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

}  // namespace rankslice

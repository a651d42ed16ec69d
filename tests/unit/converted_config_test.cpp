#include "model/converted_config.hpp"

#include <gtest/gtest.h>

#include <string>
#include <string_view>

#include "rankslice/error.hpp"

namespace rankslice {
namespace {

std::string converted(std::string_view config, DType dtype = DType::BF16) {
  auto const bytes = convert_config(std::as_bytes(std::span(config)), dtype);
  return {reinterpret_cast<char const*>(bytes.data()), bytes.size()};
}

// What `json.dumps(config, indent=2) + "\n"` gives of the same in Python.
TEST(ConvertedConfig, LosesItsQuantisationAndKeepsAllElseInItsOrder) {
  EXPECT_EQ(
      converted(R"({"z": 1, "quantization_config": {"quant_method": "fp8"}, "a": [1.5, 1e-06], "é": "é", "n": null,
                          "text_config": {"hidden_size": 8, "quantization_config": {}, "rope_theta": 10000000.0, "e": {}}})"),
      "{\n"
      "  \"z\": 1,\n"
      "  \"a\": [\n"
      "    1.5,\n"
      "    1e-06\n"
      "  ],\n"
      "  \"\\u00e9\": \"\\u00e9\",\n"
      "  \"n\": null,\n"
      "  \"text_config\": {\n"
      "    \"hidden_size\": 8,\n"
      "    \"rope_theta\": 10000000.0,\n"
      "    \"e\": {}\n"
      "  }\n"
      "}\n");
}

TEST(ConvertedConfig, SaysTheNewDtypeWhereItSaidOne) {
  EXPECT_EQ(converted(R"({"torch_dtype": "float8_e4m3fn", "vision_config": {"dtype": "bfloat16"}, "text_config": {}})",
                      DType::F16),
            "{\n"
            "  \"torch_dtype\": \"float16\",\n"
            "  \"vision_config\": {\n"
            "    \"dtype\": \"float16\"\n"
            "  },\n"
            "  \"text_config\": {}\n"
            "}\n");
  EXPECT_EQ(converted(R"({"dtype": null})", DType::F32), "{\n  \"dtype\": \"float32\"\n}\n");
  EXPECT_EQ(converted(R"({"text_config": 7})"), "{\n  \"text_config\": 7\n}\n");
}

TEST(ConvertedConfig, OfSomethingElseThanAnObjectIsRefused) {
  for (std::string_view const bad : {"", "[]", "{\"a\": ", "\"quantization_config\""}) {
    EXPECT_THROW((void)converted(bad), FormatError) << bad;
  }
}

}  // namespace
}  // namespace rankslice

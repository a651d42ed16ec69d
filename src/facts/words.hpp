#pragma once

#include <nlohmann/json.hpp>

#include <cstdint>
#include <string>

#include "rankslice/error.hpp"

namespace rankslice {

/// What programs are told, in the order in which it is printed.
using Json = nlohmann::ordered_json;

/// "1.61 GB"
[[nodiscard]] std::string human_bytes(std::uint64_t bytes);

/// "rank(s) 4" stays short: "1 rank", "4 ranks".
[[nodiscard]] std::string counted(std::uint64_t n, std::string const& singular);

/// As reports have it. An error that ranks have not agreed on gets rank 0.
[[nodiscard]] Json describe_error(Error const& error);

/// What the program prints of it: names that are no UTF-8 with replacement characters, and a line's end.
[[nodiscard]] std::string json_text(Json const& value);

}  // namespace rankslice

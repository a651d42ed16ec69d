#pragma once

#include <string>

namespace rankslice {

/// A small file beside the weights, whole.
struct TextFile {
  std::string name;
  std::string text;
};

}  // namespace rankslice

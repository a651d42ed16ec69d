#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "fuzz/fuzz.hpp"

/// replay FOLDER: each file of the folder as one input, without libFuzzer.
int main(int argc, char** argv) {
  std::size_t files = 0;
  for (auto const& entry : std::filesystem::directory_iterator(argc == 2 ? argv[1] : "")) {
    std::printf("%s\n", entry.path().c_str());
    std::fflush(stdout);  // so that the last line names the input that ends the program
    std::ifstream stream(entry.path(), std::ios::binary);
    std::string const input{std::istreambuf_iterator<char>(stream), {}};
    LLVMFuzzerTestOneInput(reinterpret_cast<std::uint8_t const*>(input.data()), input.size());
    ++files;
  }
  return files == 0 ? 1 : 0;
}

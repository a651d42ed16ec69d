// Input: a list of checksums as it is.

#include <algorithm>
#include <filesystem>

#include "format/sha256_sums.hpp"
#include "fuzz/fuzz.hpp"

namespace {

using namespace rankslice;
using namespace rankslice::fuzz;

void require_harmless(ListedSum const& listed) {
  std::filesystem::path const path(listed.name);
  require(!listed.name.empty() && path.is_relative(), "a file stands below its folder");
  require(*path.lexically_normal().begin() != "..", "a file does not lead out of its folder");
  require(listed.name.find('\0') == std::string::npos, "a file has a name for C");
  require(listed.sha256.size() == 64, "a sum has 64 digits");
  require(listed.sha256.find_first_not_of("0123456789abcdef") == std::string::npos, "digits are hexadecimal");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  std::vector<ListedSum> list;
  if (accepts([&] { list = parse_sha256_sums(text_of(data, size), "SHA256SUMS"); })) {
    require(!list.empty(), "a list has files");
    std::ranges::for_each(list, require_harmless);
    require(std::ranges::adjacent_find(list, std::ranges::greater_equal{}, &ListedSum::name) == list.end(),
            "files come by name, each once");
  }
  return 0;
}

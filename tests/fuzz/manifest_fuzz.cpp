// Input: a manifest as it is.

#include <algorithm>
#include <numeric>

#include "format/manifest.hpp"
#include "fuzz/fuzz.hpp"

namespace {

using namespace rankslice;
using namespace rankslice::fuzz;

constexpr auto kName = "rankslice.manifest.json";

void require_consistent(Manifest const& manifest) {
  auto const by_name = [](auto const& items, auto const& name_of) {
    return std::ranges::adjacent_find(items, std::ranges::greater_equal{}, name_of) == items.end();
  };
  require(by_name(manifest.files, &Manifest::File::name), "files come by name, each once");
  require(by_name(manifest.tensors, &Manifest::Tensor::key), "tensors come by key, each once");
  for (auto const& tensor : manifest.tensors) {
    auto const& digests = tensor.digests;
    auto const entries = tensor.shape.size() >= 3 && element_count(tensor.shape) > 0 ? tensor.shape[0] : 0;
    require(digests.size() == entries + 1, "there is a digest for each entry, and one for all");
    require(entries == 0 || std::accumulate(digests.begin() + 1, digests.end(), std::uint64_t{0}) == digests[0],
            "digests add up");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  Manifest manifest;
  if (accepts([&] { manifest = parse_manifest(text_of(data, size), kName); })) {
    require_consistent(manifest);
    require(parse_manifest(to_text(manifest, kName), kName) == manifest, "what is written is read again");
  }
  return 0;
}

// Input: the `__metadata__` of a file of shards, a line NAME=VALUE for each field.

#include "format/shards.hpp"
#include "fuzz/fuzz.hpp"

namespace {

using namespace rankslice;
using namespace rankslice::fuzz;

std::map<std::string, std::string> metadata_of(std::string_view text) {
  std::map<std::string, std::string> metadata;
  while (!text.empty()) {
    auto value = take_until(text, "\n");
    auto const name = take_until(value, "=");
    metadata.emplace(name, value);
  }
  return metadata;
}

void require_way_back(ShardMetadata const& shard) {
  auto const metadata = to_metadata(shard);
  auto const again = parse_shard_metadata(metadata, shard_file_name(0));
  require(to_metadata(again) == metadata, "what is written is read again");
  require(again.mesh == shard.mesh && again.coordinate == shard.coordinate, "the mesh is read again");
  require(again.tensors.size() == shard.tensors.size(), "the tensors are read again");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  ShardMetadata shard;
  auto const parse = [&] { shard = parse_shard_metadata(metadata_of(text_of(data, size)), shard_file_name(0)); };
  if (accepts(parse)) {
    auto const rank = shard.mesh.rank(shard.coordinate);
    require(rank >= 0 && rank < shard.mesh.ranks(), "a rank is one of its mesh");
    require(shard.mesh.coordinate(rank) == shard.coordinate, "a rank stands where it says");
    require_way_back(shard);
  }
  return 0;
}

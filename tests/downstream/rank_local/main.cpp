// One rank of a training job takes its slice of a checkpoint, alone and without MPI, and shows where some of its
// tensors stand in the whole and how they begin.
//
//   rank_local CHECKPOINT RANK RANKS FQN…
//   rank_local Qwen3.6-35B-A3B 3 8 model.language_model.layers.0.mlp.experts.down_projs

#include <rankslice/load.hpp>
#include <rankslice/verify.hpp>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <iostream>
#include <string>
#include <vector>

// BF16 is the upper half of a float.
std::vector<float> first_bf16_values(rankslice::Buffer const& data) {
  std::vector<std::uint16_t> bits(std::min<std::uint64_t>(4, data.bytes / 2));
  if (!bits.empty()) std::memcpy(bits.data(), data.data.get(), 2 * bits.size());
  std::vector<float> values;
  for (std::uint32_t const half : bits) values.push_back(std::bit_cast<float>(half << 16));
  return values;
}

int main(int argc, char** argv) try {
  if (argc < 4) throw rankslice::UsageError("usage: rank_local CHECKPOINT RANK RANKS FQN…");
  auto const mesh = rankslice::make_mesh(std::stoi(argv[3]));  // all expert-parallel: each rank owns other experts
  auto const source = rankslice::open_checkpoint(argv[1]);
  auto const state = rankslice::load(source, mesh, mesh.coordinate(std::stoi(argv[2])));
  rankslice::verify(state).throw_if_bad();  // what it holds is what it read

  std::cout << state.tensors.size() << " tensors\n";
  for (int i = 4; i < argc; ++i) {
    auto const& tensor = state.tensors.at(argv[i]);
    std::cout << argv[i] << ": " << rankslice::to_string(tensor.local_shape) << " at "
              << rankslice::to_string(tensor.offsets) << ", begins with";
    for (auto const value : first_bf16_values(tensor.data)) std::cout << ' ' << value;
    std::cout << '\n';
  }
} catch (std::exception const& error) {  // rankslice::Error: with the file, the tensor and an exit code
  std::cerr << error.what() << '\n';
  return 1;
}

// One rank of a training job takes its slice of a checkpoint as LibTorch tensors, without a copy.
//
//   as_torch CHECKPOINT RANK RANKS

#include <ATen/core/Tensor.h>
#include <rankslice/load.hpp>
#include <rankslice/torch.hpp>

#include <iostream>
#include <string>

int main(int argc, char** argv) try {
  if (argc != 4) throw rankslice::UsageError("usage: as_torch CHECKPOINT RANK RANKS");
  auto const mesh = rankslice::make_mesh(std::stoi(argv[3]));
  auto const state = rankslice::load(rankslice::open_checkpoint(argv[1]), mesh, mesh.coordinate(std::stoi(argv[2])));
  for (auto const& [fqn, tensor] : rankslice::as_tensors(state))
    std::cout << fqn << ' ' << tensor.dtype() << ' ' << tensor.sizes() << '\n';
} catch (std::exception const& error) {
  std::cerr << error.what() << '\n';
  return 1;
}

// One rank of a training job that has no MPI, started as torchrun starts it.
//
//   torchrun --nproc-per-node 8 --no-python training_rank CHECKPOINT TRAINED PORT

#include <rankslice/load.hpp>
#include <rankslice/tcp.hpp>
#include <rankslice/to_hf.hpp>
#include <rankslice/verify.hpp>

#include <cstddef>
#include <cstdlib>
#include <iostream>
#include <stdexcept>
#include <string>

std::string variable(char const* name) {
  auto const* const value = std::getenv(name);
  if (value == nullptr) throw rankslice::UsageError(std::string(name) + " is not set");
  return value;
}

int number(char const* name) try { return std::stoi(variable(name)); } catch (std::logic_error const&) {
  throw rankslice::UsageError(std::string(name) + " is no number");
}

// Stands for an optimiser: BF16 values change their sign.
void step(rankslice::Buffer const& parameter) {
  auto const bytes = parameter.span();
  for (std::size_t i = 1; i < bytes.size(); i += 2) bytes[i] ^= std::byte{0x80};
}

void train(std::string const& checkpoint, std::string const& trained, rankslice::TcpOptions const& meeting) {
  auto const world = rankslice::make_tcp_communicator(meeting);
  auto const source = rankslice::open_checkpoint(checkpoint, *world);
  auto const state = rankslice::load(source, rankslice::make_mesh(world->size()), *world);
  rankslice::verify(state, *world).throw_if_bad();
  step(state.tensors.at("model.language_model.layers.0.mlp.experts.down_projs").data);
  rankslice::to_hf(state, trained, *world);
}

int main(int argc, char** argv) try {
  if (argc != 4) throw rankslice::UsageError("usage: training_rank CHECKPOINT TRAINED PORT");
  train(argv[1], argv[2],
        {.rank = number("RANK"),
         .size = number("WORLD_SIZE"),
         .rendezvous = variable("MASTER_ADDR") + ':' + argv[3]});  // MASTER_PORT is that of torchrun's own store
  return 0;
} catch (rankslice::Error const& error) {  // the same on all ranks, whichever of them it came from
  if (error.rank >= 0) std::cerr << "rank " << error.rank << ": ";
  std::cerr << error.what() << '\n';
  return static_cast<int>(error.code);
}

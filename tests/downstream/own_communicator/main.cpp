// A program with an MPI of its own lets some of its ranks load a checkpoint together: here all but rank 0, which stands
// for one that drives the job. They verify it, write it as a native store, and give the checkpoint back: as files, and
// tensor by tensor to each of them.
//
//   mpirun -n 3 own_communicator CHECKPOINT STORE.h5 EXPORTED

#include <mpi.h>
#include <rankslice/gather.hpp>
#include <rankslice/load.hpp>
#include <rankslice/mpi.hpp>
#include <rankslice/store.hpp>
#include <rankslice/to_hf.hpp>
#include <rankslice/verify.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iostream>
#include <map>
#include <span>
#include <string>
#include <vector>

struct Paths {
  std::string checkpoint;
  std::string store;
  std::string exported;
};

// Stands for whoever takes the weights, an inference engine for example.
struct Engine {
  std::map<std::string, std::vector<std::byte>> tensors;

  void fill(std::string const& key, std::uint64_t first_byte, std::span<std::byte const> bytes) {
    auto& tensor = tensors[key];
    tensor.resize(first_byte + bytes.size());
    std::copy(bytes.begin(), bytes.end(), tensor.begin() + static_cast<std::ptrdiff_t>(first_byte));
  }
};

// Returns an exit code: the same on all ranks of `comm`, as is an error, whichever of them it came from.
int load_together(MPI_Comm comm, Paths const& paths) try {
  auto const loaders = rankslice::make_mpi_communicator(comm);  // works on a duplicate
  auto const mesh = rankslice::make_mesh(loaders->size());
  auto const source = rankslice::open_checkpoint(paths.checkpoint, *loaders);
  auto const state = rankslice::load(source, mesh, *loaders);
  auto const report = rankslice::verify(state, *loaders);
  report.throw_if_bad();
  rankslice::save_store(state, paths.store, *loaders);
  rankslice::to_hf(state, paths.exported, *loaders);
  Engine engine;
  rankslice::gather(
      state, *loaders, {.receivers = rankslice::Receivers::all_ranks},
      [&](rankslice::HfBlock const& block) { engine.fill(block.tensor.key, block.bytes.begin, block.data); });
  if (loaders->rank() == 0)
    std::cout << loaders->size() << " ranks hold " << report.tensors << " tensors and " << report.experts
              << " expert blocks; each was handed " << engine.tensors.size() << " HF tensors\n";
  return 0;
} catch (rankslice::Error const& error) {
  int rank = 0;
  MPI_Comm_rank(comm, &rank);
  if (rank == 0) std::cerr << "loading rank " << error.rank << ": " << error.what() << '\n';
  return static_cast<int>(error.code);
}

int main(int argc, char** argv) {
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm loaders = MPI_COMM_NULL;
  MPI_Comm_split(MPI_COMM_WORLD, rank == 0 ? MPI_UNDEFINED : 0, rank, &loaders);

  int code = 0;
  if (argc != 4) {
    code = 2;
    if (rank == 0) std::cerr << "usage: own_communicator CHECKPOINT STORE.h5 EXPORTED\n";
  } else if (loaders != MPI_COMM_NULL) {
    code = load_together(loaders, {argv[1], argv[2], argv[3]});
  }

  if (loaders != MPI_COMM_NULL) MPI_Comm_free(&loaders);  // ours to free, after the last use of rankslice
  MPI_Finalize();
  return code;
}

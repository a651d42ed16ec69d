// trained_state SOURCE OUT MAX_FILE_BYTES: what a trainer does, as a program. Loads a checkpoint, makes other tensors
// of it, and exports them without a source: values doubled, as F32, with the side files of SOURCE.

#include <iostream>

#include "rankslice/load.hpp"
#include "rankslice/make_state_dict.hpp"
#include "rankslice/to_hf.hpp"

#include "support/caller_tensors.hpp"

int main(int argc, char** argv) {
  using namespace rankslice;
  if (argc != 4) return 2;
  try {
    auto const world = make_solo_communicator();
    auto const source = open_checkpoint(argv[1]);
    auto const mesh = make_mesh(1);
    auto const tensors = test::doubled_as_f32(load(source, mesh, mesh.coordinate(0)));
    auto const state = make_state_dict(
        tensors, mesh, mesh.coordinate(0),
        {.family = source->family, .side_files = side_files_in(argv[1]), .max_file_bytes = std::stoull(argv[3])});
    to_hf(state, argv[2], *world);
    return 0;
  } catch (Error const& error) {
    std::cerr << error.what() << '\n';
    return static_cast<int>(error.code);
  }
}

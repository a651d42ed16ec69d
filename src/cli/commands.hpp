#pragma once

#include "cli/job.hpp"

namespace rankslice::cli {

// One function per subcommand. Collective over `job.world`; errors are thrown on every rank alike.
void inspect(Job& job);
void plan(Job& job);
void synth(Job& job);
void load(Job& job);
void verify(Job& job);
void to_hf(Job& job);
void bench(Job& job);
/// What a job on these ranks would find: launch, MPI, GPUs, limits, paths.
void doctor(Job& job);

// Of one process: print what the parser's definitions make.
void man(Job& job);
void completion(Job& job);

}  // namespace rankslice::cli

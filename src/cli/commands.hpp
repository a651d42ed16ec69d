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

}  // namespace rankslice::cli

#pragma once

#include "rankslice/communicator.hpp"
#include "rankslice/state_dict.hpp"

#include "plan/row_exchange_plan.hpp"
#include "storage_reader.hpp"
#include "transform/transfer.hpp"

namespace rankslice {

/// Read the rows of a plan (Note [Rows read once]) into the tensors of a state, of which the plan is. A band is read
/// while those before it travel, in bounded host memory: three blocks. `sums`, if given, gets the digests of what was
/// read for this rank, taken by whoever read it, before it travelled. `done` is called for what this rank reads
/// and receives.
///
/// Everything travels on `world`, a send and a receive between each pair of a group for each block, started together
/// and in the same order: no rank is ahead of another by more than three blocks, and a communicator of GPUs has both in
/// one round. A rank that fails goes on to the end of its batch (Note [To the end]). Collective.
/// @throws IoError, FormatError, DeviceError; UsageError for a communicator that cannot send
void exchange_rows(StateDict const& state, RowExchangePlan const& plan, Digests* sums, BlockDone const& done,
                   Communicator& world, ReadOptions const& how = {}, OpenFile const& open = {});

}  // namespace rankslice

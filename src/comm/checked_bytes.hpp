#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "rankslice/communicator.hpp"

namespace rankslice {

// Networks flip bits. What ranks compare shows that by itself; what they believe travels with a checksum.

/// Puts a checksum of the bytes behind them.
void add_checksum(std::vector<std::byte>& bytes);
/// Takes it off again. `sender` names who added it.
/// @throws VerifyError when the bytes are not those that it was made of.
void remove_checksum(std::vector<std::byte>& bytes, std::string const& sender);

/// As `Communicator::gather`, with checksums. Collective.
/// @throws VerifyError on every rank when something arrived damaged.
[[nodiscard]] std::vector<std::vector<std::byte>> gather_checked(Communicator& world, std::vector<std::byte> bytes,
                                                                 int root);

/// Whether all ranks say so: the same answer everywhere, for ranks that do different things after it. Collective.
[[nodiscard]] bool all_say(Communicator& world, bool so);

}  // namespace rankslice

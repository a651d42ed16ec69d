#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "rankslice/options.hpp"
#include "rankslice/tensor_catalog.hpp"

#include "io/block_plan.hpp"

namespace rankslice {

/// How the bytes that one thread will ask for are read.
struct ReadChoice {
  ReadBackend by = ReadBackend::pread;        ///< What `ahead` is read by.
  bool uring = false;                         ///< Many of these reads at once.
  std::vector<Extent> ahead{};                ///< Ahead of the requests, in their order. All else by `pread`.
  std::vector<std::vector<Range>> to_drop{};  ///< By file, what is to leave the page cache when it was read.
  std::string why;                            ///< "all of it is in the page cache"
};

/// Look at the files, at what of them is in the page cache, and at what this system offers; and choose. `extents` come
/// in the order of the requests; those `alone` are read by no other process of this host, and only they pass the page
/// cache without being asked to, or are dropped from it. Nothing is read. Local.
/// @throws IoError (`io`) for `io_uring` where it is not to be had, and as `open_reader`; FormatError
[[nodiscard]] ReadChoice choose_reads(std::vector<CatalogFile> const& files, std::vector<Extent> const& extents,
                                      ReadOptions const& how, std::vector<Extent> const& alone);

/// The blocks of what is read ahead. Pure.
[[nodiscard]] BlockPlan blocks_of(ReadChoice const& choice);

}  // namespace rankslice

#include "io/read_choice.hpp"

#include <fmt/format.h>

#include "rankslice/error.hpp"

#include "core/literals.hpp"
#include "io/direct_file.hpp"
#include "io/page_cache.hpp"
#include "io/positional.hpp"
#include "io/read_engine.hpp"

namespace rankslice {

namespace {

constexpr auto kWorthAnEngine = 4_MiB;  // what takes about as long to read as an engine to set up

/// What the page cache and the file systems have to say of what will be read.
struct Look {
  std::vector<std::vector<Range>> cold;     ///< By file.
  std::vector<std::vector<Range>> unknown;  ///< By file, of which the system does not tell.
  std::uint64_t cold_bytes = 0, unknown_bytes = 0, bytes = 0;
  bool on_local_disks = true;  ///< What is cold.
};

std::uint64_t bytes_of(std::vector<Range> const& ranges) {
  std::uint64_t bytes = 0;
  for (auto const& range : ranges) bytes += range.size();
  return bytes;
}

Look look_at(std::vector<CatalogFile> const& files, std::vector<Extent> const& extents) {
  Look look;
  look.cold.resize(files.size());
  look.unknown.resize(files.size());
  auto const runs = runs_by_file(extents, files.size());
  for (std::size_t i = 0; i < files.size(); ++i) {
    if (runs[i].empty()) continue;
    auto const fd = open_regular(files[i].path);
    auto const cold = cold_parts(fd.get(), runs[i]);
    (cold ? look.cold : look.unknown)[i] = cold.value_or(runs[i]);
    look.bytes += bytes_of(runs[i]);
    look.cold_bytes += bytes_of(look.cold[i]);
    look.unknown_bytes += bytes_of(look.unknown[i]);
    if (!look.cold[i].empty()) look.on_local_disks = look.on_local_disks && is_on_local_disk(fd.get());
  }
  return look;
}

/// What is right for what is in the page cache and for what is not: through it, many reads at once.
ReadChoice choose_for_unknown(std::vector<Extent> const& extents, Look const& look) {
  constexpr auto kWhy = "the system tells only who may write to a file what the page cache has of it";
  auto const why_no_uring = why_no_uring_engine();
  if (!why_no_uring.empty()) return {.why = fmt::format("{}, and io_uring is not to be had: {}", kWhy, why_no_uring)};
  auto parts = look.cold;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].empty()) parts[i] = look.unknown[i];
  }
  return {.by = ReadBackend::io_uring, .uring = true, .ahead = within(extents, parts), .why = kWhy};
}

/// What is fastest, as measured on local disks: past the page cache with a deep queue 3.5 GB/s, through it, however
/// deep, 2.0. Who else keeps caches of its own, or on other hosts, is read through them.
ReadChoice choose_automatically(std::vector<Extent> const& extents, Look const& look,
                                std::vector<Extent> const& alone) {
  if (look.unknown_bytes > 0 && look.unknown_bytes + look.cold_bytes >= kWorthAnEngine) {
    return choose_for_unknown(extents, look);
  }
  if (look.unknown_bytes > 0) return {.why = "too little to read ahead"};
  if (look.cold_bytes < kWorthAnEngine) {
    return {.why = look.cold_bytes == 0 ? "the page cache has all of it" : "the page cache has nearly all of it"};
  }
  auto const share = fmt::format("{:.0f} % are not in the page cache",
                                 100.0 * static_cast<double>(look.cold_bytes) / static_cast<double>(look.bytes));
  auto const why_no_uring = why_no_uring_engine();
  if (!why_no_uring.empty()) return {.why = fmt::format("{}, and io_uring is not to be had: {}", share, why_no_uring)};
  return {.by = look.on_local_disks ? ReadBackend::direct : ReadBackend::io_uring,
          .uring = true,
          .ahead = within(look.on_local_disks ? alone : extents, look.cold),
          .why = fmt::format("{}, {}", share, look.on_local_disks ? "but on a local disk" : "nor all on a local disk")};
}

ReadChoice choose_uring(std::vector<Extent> const& extents) {
  auto const why_not = why_no_uring_engine();
  if (!why_not.empty()) throw IoError(ExitCode::io, "files cannot be read by io_uring: " + why_not);
  return {.by = ReadBackend::io_uring, .uring = true, .ahead = extents, .why = "as asked for"};
}

ReadChoice choose_direct(std::vector<Extent> const& extents) {
  auto const why_no_uring = why_no_uring_engine();
  auto const why = why_no_uring.empty() ? "as asked for" : "as asked for, one after the other: " + why_no_uring;
  return {.by = ReadBackend::direct, .uring = why_no_uring.empty(), .ahead = extents, .why = why};
}

ReadChoice choose(std::vector<Extent> const& extents, ReadBackend asked, Look const& look,
                  std::vector<Extent> const& alone) {
  switch (asked) {
    case ReadBackend::automatic:
      return choose_automatically(extents, look, alone);
    case ReadBackend::io_uring:
      return choose_uring(extents);
    case ReadBackend::direct:
      return choose_direct(extents);
    case ReadBackend::pread:
      break;
  }
  return {.why = "as asked for"};
}

}  // namespace

BlockPlan blocks_of(ReadChoice const& choice) {
  return plan_blocks(choice.ahead, {.alignment = choice.by == ReadBackend::direct ? kDirectAlignment : 1});
}

ReadChoice choose_reads(std::vector<CatalogFile> const& files, std::vector<Extent> const& extents,
                        ReadOptions const& how, std::vector<Extent> const& alone) {
  auto const looks = how.backend == ReadBackend::automatic || how.cache == PageCache::drop;
  auto const look = looks ? look_at(files, extents) : Look{};
  auto choice = choose(extents, how.backend, look, alone);
  if (how.cache == PageCache::drop && choice.by != ReadBackend::direct) {
    choice.to_drop = runs_by_file(within(alone, look.cold), files.size());
    if (look.unknown_bytes > 0) choice.why += "; what of that was there is not known, so it is not dropped";
  }
  return choice;
}

}  // namespace rankslice

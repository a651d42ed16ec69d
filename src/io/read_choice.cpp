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

/// Why what is cold is not read past the page cache unless that is asked for.
std::string why_not_past(std::vector<CatalogFile> const& files, Look const& look) {
  for (std::size_t i = 0; i < files.size(); ++i) {
    if (look.cold[i].empty()) continue;
    auto const answer = try_direct(files[i].path);
    if (!answer.why_refused.empty()) return fmt::format("nor read past it: {}: {}", files[i].path, answer.why_refused);
    if (!answer.on_local_disk) return "nor all on a local disk";
  }
  return {};
}

/// What is fastest, as measured on local disks: past the page cache with a deep queue 3.5 GB/s, through it, however
/// deep, 2.0. Who else keeps caches of its own, or on other hosts, is read through them.
ReadChoice choose_automatically(std::vector<CatalogFile> const& files, std::vector<Extent> const& extents,
                                Look const& look, std::vector<Extent> const& alone) {
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
  auto const why_not = why_not_past(files, look);
  return {.by = why_not.empty() ? ReadBackend::direct : ReadBackend::io_uring,
          .uring = true,
          .ahead = within(why_not.empty() ? alone : extents, look.cold),
          .why = fmt::format("{}, {}", share, why_not.empty() ? "but on a local disk" : why_not)};
}

ReadChoice choose_uring(std::vector<Extent> const& extents) {
  auto const why_not = why_no_uring_engine();
  if (!why_not.empty()) throw IoError(ExitCode::io, "files cannot be read by io_uring: " + why_not);
  return {.by = ReadBackend::io_uring, .uring = true, .ahead = extents, .why = "as asked for"};
}

/// What the file systems say to reads past the page cache.
struct DirectLook {
  std::vector<bool> refused;        ///< By file.
  std::vector<bool> through_cache;  ///< By file, perhaps.
  std::string why_refused{};        ///< Of the first one that is.
  std::string doubt{};              ///< The first one.
};

DirectLook look_past(std::vector<CatalogFile> const& files, std::vector<Extent> const& extents) {
  DirectLook look{.refused = std::vector<bool>(files.size()), .through_cache = std::vector<bool>(files.size())};
  std::vector<bool> seen(files.size());
  for (auto const& [file, bytes] : extents) {
    if (seen[file]) continue;
    seen[file] = true;
    auto const answer = try_direct(files[file].path);
    look.refused[file] = !answer.why_refused.empty();
    look.through_cache[file] = look.refused[file] || !answer.doubt.empty();
    if (look.refused[file] && look.why_refused.empty()) {
      look.why_refused = fmt::format("{}: {}", files[file].path, answer.why_refused);
    } else if (look.through_cache[file] && look.doubt.empty()) {
      look.doubt = answer.doubt;
    }
  }
  return look;
}

ReadChoice choose_direct(std::vector<Extent> const& extents, DirectLook const& past) {
  auto ahead = extents;
  std::erase_if(ahead, [&](Extent const& extent) { return past.refused[extent.file]; });
  if (ahead.empty() && !extents.empty()) return {.why = "nothing can be read past the page cache: " + past.why_refused};
  auto const why_no_uring = why_no_uring_engine();
  std::string why = "as asked for";
  if (!why_no_uring.empty()) why += ", one after the other: " + why_no_uring;
  if (!past.why_refused.empty()) why += fmt::format("; not all can be ({})", past.why_refused);
  if (!past.doubt.empty()) why += "; " + past.doubt;
  return {.by = ReadBackend::direct, .uring = why_no_uring.empty(), .ahead = std::move(ahead), .why = why};
}

/// As was asked for, but for what is chosen automatically.
ReadChoice choose(std::vector<Extent> const& extents, ReadBackend asked, DirectLook const& past) {
  if (asked == ReadBackend::io_uring) return choose_uring(extents);
  if (asked == ReadBackend::direct) return choose_direct(extents, past);
  return {.why = "as asked for"};
}

/// What is to leave the page cache when it was read: what came into it, as far as nobody else wants it.
std::vector<std::vector<Range>> to_drop(ReadChoice const& choice, Look const& look, DirectLook const& past,
                                        std::vector<Extent> const& alone) {
  auto parts = look.cold;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    auto const past_it = choice.by == ReadBackend::direct && (past.through_cache.empty() || !past.through_cache[i]);
    if (past_it) parts[i].clear();
  }
  return runs_by_file(within(alone, parts), parts.size());
}

}  // namespace

BlockPlan blocks_of(ReadChoice const& choice) {
  return plan_blocks(choice.ahead, {.alignment = choice.by == ReadBackend::direct ? kDirectAlignment : 1});
}

ReadChoice choose_reads(std::vector<CatalogFile> const& files, std::vector<Extent> const& extents,
                        ReadOptions const& how, std::vector<Extent> const& alone) {
  auto const looks = how.backend == ReadBackend::automatic || how.cache == PageCache::drop;
  auto const look = looks ? look_at(files, extents) : Look{};
  auto const past = how.backend == ReadBackend::direct ? look_past(files, extents) : DirectLook{};
  auto choice = how.backend == ReadBackend::automatic ? choose_automatically(files, extents, look, alone)
                                                      : choose(extents, how.backend, past);
  if (how.cache == PageCache::drop) {
    choice.to_drop = to_drop(choice, look, past, alone);
    if (look.unknown_bytes > 0) choice.why += "; what of that was there is not known, so it is not dropped";
  }
  return choice;
}

}  // namespace rankslice

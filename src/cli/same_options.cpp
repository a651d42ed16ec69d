#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "rankslice/error.hpp"

#include "cli/options.hpp"

namespace rankslice::cli {

namespace {

/// "--verify full", one line for each option that all ranks must have alike.
std::string describe(Options const& o) {
  std::string lines;
  auto const say = [&](std::string_view name, auto const& value) { lines += fmt::format("{} {}\n", name, value); };
  say("command", o.command);
  for (auto const& [name, text] :
       std::initializer_list<std::pair<std::string_view, std::string const&>>{{"input", o.input},
                                                                              {"output", o.output},
                                                                              {"--family", o.family},
                                                                              {"--dtype", o.dtype},
                                                                              {"--expert-layout", o.expert_layout},
                                                                              {"--device", o.device},
                                                                              {"--comm", o.comm},
                                                                              {"--verify", o.verify},
                                                                              {"--dense", o.dense},
                                                                              {"--io", o.io},
                                                                              {"--cache", o.cache},
                                                                              {"--include", o.include},
                                                                              {"--exclude", o.exclude},
                                                                              {"--store", o.store},
                                                                              {"--save-shards", o.save_shards},
                                                                              {"--against", o.against},
                                                                              {"--source", o.source},
                                                                              {"--manifest", o.manifest},
                                                                              {"--export-layout", o.export_layout},
                                                                              {"--gdn-dtype", o.gdn_dtype},
                                                                              {"--resume", o.resume},
                                                                              {"--preset", o.preset},
                                                                              {"--scratch", o.scratch},
                                                                              {"--compare", o.compare}}) {
    say(name, text.empty() ? "not given" : text);
  }
  for (auto const& [name, flag] :
       std::initializer_list<std::pair<std::string_view, bool>>{{"--text-only", o.text_only},
                                                                {"--gather", o.gather},
                                                                {"--dry-run", o.dry_run},
                                                                {"--overwrite", o.overwrite},
                                                                {"--cold", o.cold},
                                                                {"--trace", !o.trace.empty()}}) {
    say(name, flag);
  }
  say("--write-manifest", o.write_manifest.value_or("not given"));
  say("--sha256", o.sha256.value_or("not given"));
  say("--ep", o.ep);
  say("--ep-shard", o.ep_shard);
  say("--repeats", o.repeats);
  say("PATH", fmt::format("{}", fmt::join(o.paths, " ")));
  say("--steps", fmt::format("{}", fmt::join(o.steps, ",")));
  return lines;
}

std::string_view first_line(std::string_view& text) {
  auto const line = text.substr(0, text.find('\n'));
  text.remove_prefix(std::min(text.size(), line.size() + 1));
  return line;
}

void require_equal(std::string_view mine, std::string_view of_rank_0, int rank) {
  while (!mine.empty() || !of_rank_0.empty()) {
    auto const here = first_line(mine);
    auto const there = first_line(of_rank_0);
    if (here == there) continue;
    throw UsageError(
        fmt::format("the ranks were started with different options: rank {} has {}, rank 0 has {}", rank, here, there));
  }
}

}  // namespace

void require_same_options(Options const& options, Communicator& world) {
  if (world.size() == 1) return;
  auto const mine = describe(options);
  auto const bytes = std::as_bytes(std::span(mine));
  std::vector<std::byte> shared(bytes.begin(), bytes.end());
  broadcast_vector(world, shared, 0);
  std::string const of_rank_0(reinterpret_cast<char const*>(shared.data()), shared.size());
  on_every_rank(world, [&] { require_equal(mine, of_rank_0, world.rank()); });
}

}  // namespace rankslice::cli

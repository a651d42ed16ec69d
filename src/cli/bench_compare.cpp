#include "cli/bench_compare.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include "rankslice/error.hpp"
#include "rankslice/load.hpp"
#include "rankslice/verify.hpp"

#include "cli/bench_steps.hpp"
#include "cli/compare_script.hpp"
#include "cli/job.hpp"
#include "cli/listing.hpp"
#include "cli/python_process.hpp"
#include "core/sha.hpp"
#include "facts/words.hpp"

namespace rankslice::cli {

namespace {

constexpr auto kOurs = "rankslice in Python";

std::string script_in(std::string const& scratch) { return scratch + "/compare.py"; }
std::string job_of(BenchSubject const& subject) {
  return fmt::format("{}/compare-{}.json", subject.scratch, subject.world.rank());
}

std::shared_ptr<PythonProcess> start_python(BenchSubject const& subject, std::string const& way) {
  auto const& [python, patience, open, loaders] = subject.comparison;
  auto const errors = fmt::format("{}/compare-{}-{}.err", subject.scratch, subject.world.rank(), loaders.size());
  return std::make_shared<PythonProcess>(
      python, std::vector<std::string>{script_in(subject.scratch), job_of(subject), way}, errors, patience);
}

Json ranges_json(std::vector<Range> const& ranges) {
  auto list = Json::array();
  for (auto const& range : ranges) list.push_back({range.begin, range.end});
  return list;
}

std::vector<Range> whole_of(Shape const& shape) {
  std::vector<Range> ranges;
  for (auto const size : shape) ranges.push_back({0, size});
  return ranges;
}

/// Which part of a tensor of the checkpoint is which part of a rank's native one; nothing when they share none.
std::optional<Json> piece_json(Checkpoint const& checkpoint, Parameter const& parameter, std::uint32_t index,
                               Slice const& held) {
  auto const& tensor = checkpoint.model.tensors[index];
  auto const& file = checkpoint.catalog.files[checkpoint.catalog.tensors[index].extent.file];
  Json piece{{"key", tensor.key}, {"file", file.path}, {"whole", true}, {"swapped", false}};
  if (!parameter.stacked_experts) {
    piece["from"] = piece["to"] = ranges_json(whole_of(tensor.shape));
    return piece;
  }
  auto const experts = intersection(held.part, tensor.experts);
  if (experts.empty()) return std::nullopt;
  auto const swapped = parameter.layout == Layout::swapped;
  std::vector<Range> from{held.rows, {0, tensor.columns.size()}};
  if (swapped) std::swap(from[0], from[1]);
  if (tensor.shape.size() == 3) {
    from.insert(from.begin(), {experts.begin - tensor.experts.begin, experts.end - tensor.experts.begin});
  }
  std::vector<Range> const to{
      {experts.begin - held.part.begin, experts.end - held.part.begin}, {0, held.rows.size()}, tensor.columns};
  piece["whole"] = from == whole_of(tensor.shape);
  piece["swapped"] = swapped;
  piece["from"] = ranges_json(from);
  piece["to"] = ranges_json(to);
  return piece;
}

/// What a rank holds of a parameter, by its digest, and what it is made of.
Json tensor_json(Checkpoint const& checkpoint, ShardedTensor const& tensor) {
  auto const& parameter = tensor.parameter;
  auto pieces = Json::array();
  for (auto const index : parameter.tensors) {
    if (auto piece = piece_json(checkpoint, parameter, index, tensor.slice())) pieces.push_back(std::move(*piece));
  }
  ShaStream sha(Sha::sha256);
  sha.add(tensor.data.span());
  return {{"dtype", name(parameter.dtype)}, {"shape", tensor.local_shape}, {"sha256", sha.hex()}, {"pieces", pieces}};
}

/// The document that compare.py calls JOB.
Json describe_job(BenchSubject const& subject) {
  auto const& checkpoint = *subject.checkpoint;
  auto tensors = Json::object();
  for (auto const& [fqn, tensor] : subject.held.tensors) {
    tensors[fqn] = tensor_json(checkpoint, tensor);
    subject.alive();
  }
  return {{"checkpoint", checkpoint.path},
          {"rank", subject.world.rank()},
          {"world_size", subject.world.size()},
          {"ep", subject.mesh.ep},
          {"ep_shard", subject.mesh.ep_shard},
          {"threads", subject.call.threads},
          {"io", name(subject.call.reading.backend)},
          {"cache", subject.call.reading.cache == PageCache::drop ? "drop" : "keep"},
          {"hugepages", name(subject.huge_pages)},
          {"tensors", tensors}};
}

/// @throws IoError for a library that is not there
void introduce(BenchSubject const& subject, OtherLoader& loader, bool& answers) {
  auto const facts = Json::parse(loader.python->line(subject.alive));
  answers = true;
  if (!facts.contains("version")) throw IoError(ExitCode::io, facts["why_not"].get<std::string>());
  loader.version = facts["version"];
}

/// Every byte that it loads is looked at.
void require_same_tensors(BenchSubject const& subject, OtherLoader const& loader) {
  loader.python->tell("check\n");
  auto const differences = Json::parse(loader.python->line(subject.alive));
  static_cast<void>(loader.python->line(subject.alive));  // "done"
  if (differences.empty()) return;
  auto const first = differences.front().get<std::string>();
  throw VerifyError(fmt::format("{} does not load what the checkpoint has: {}, the first: {}", loader.way,
                                counted(differences.size(), "difference"), first));
}

/// One that opens the checkpoint, too, as other libraries have to.
Run our_run(BenchSubject& subject, std::string name, std::string meaning, VerifyLevel level) {
  auto const loaded = std::make_shared<StateDict>();
  return {.name = std::move(name),
          .meaning = std::move(meaning),
          .bytes = subject.plain->bytes(),
          .collective = true,
          .keeps_memory = true,
          .bytes_kept = subject.owned_bytes,
          .work =
              [=, &subject] {
                LoadOptions const options{.verify = level, .huge_pages = subject.huge_pages, .call = subject.call};
                *loaded = load(subject.comparison.open(), subject.mesh, subject.world, options);
                if (level == VerifyLevel::off) return;
                throw_if_bad(subject.world, verify(*loaded, subject.world, {.level = level, .call = subject.call}));
              },
          .clean = [loaded] { *loaded = {}; },
          .memory_of = [] { return ::getpid(); }};
}

Run their_run(BenchSubject& subject, OtherLoader const& loader) {
  auto const process = std::make_shared<::pid_t>(-1);
  auto const version = loader.version.empty() ? "" : loader.version + ": ";
  auto const python = loader.python;
  auto const answer = [&subject, python] { return Json::parse(python->line(subject.alive)); };
  return {.name = loader.way,
          .meaning = version + "by one fresh process for each rank, its libraries imported before",
          .bytes = subject.plain->bytes(),
          .keeps_memory = true,
          .bytes_kept = subject.owned_bytes,
          .work =
              [=] {
                python->tell("go\n");
                static_cast<void>(answer());  // "loaded"
              },
          .prepare =
              [=] {
                python->tell("time\n");
                *process = answer().get<::pid_t>();
              },
          .clean =
              [=] {
                python->tell("enough\n");
                static_cast<void>(answer());  // "done"
              },
          .memory_of = [process] { return *process; },
          .is_theirs = loader.way != kOurs,
          .end = [python] { python->end(); }};
}

Step comparison_of(BenchSubject& subject, std::string name) {
  Step step{.name = std::move(name), .runs = {}, .comparisons = {}, .takes_memory = 1};
  step.runs.push_back(
      our_run(subject, "rankslice --verify off", "opened and loaded by this program", VerifyLevel::off));
  step.runs.push_back(
      our_run(subject, "rankslice", "the same, proved by the digests of what was read and is held", VerifyLevel::full));
  auto const ours = step.runs.size();
  for (auto const& loader : subject.comparison.loaders) step.runs.push_back(their_run(subject, loader));
  step.runs.push_back(read_run(subject, subject.plain, "pread, 4 KiB pages",
                               "the owned extents into fresh memory, as they are", allocate_small_pages));
  for (std::size_t i = 0; i < ours; ++i) {
    for (auto limit = ours; limit < step.runs.size(); ++limit) step.comparisons.push_back({i, limit});
  }
  return step;
}

/// All at once: they take seconds to begin.
void start_loaders(BenchSubject& subject) {
  for (auto const* const way : {kOurs, "safetensors", "torch DCP", "NeMo Automodel"}) {
    subject.comparison.loaders.push_back({.way = way, .version = {}, .python = start_python(subject, way)});
  }
}

}  // namespace

void require_comparable(Checkpoint const& checkpoint) {
  if (checkpoint.format != CheckpointFormat::huggingface) {
    throw UsageError(
        fmt::format("--compare: {} is no folder of safetensors files, and others read nothing else", checkpoint.path));
  }
  for (auto const& parameter : checkpoint.model.parameters) {
    if (parameter.scale_bytes == 0) continue;
    throw UsageError(fmt::format("--compare: {} is dequantised, which others leave to their users", parameter.fqn));
  }
}

void find_other_loaders(BenchSubject& subject, Console& console) {
  auto& [python, patience, open, loaders] = subject.comparison;
  on_every_rank(subject.world, [&] {
    if (subject.world.rank() == 0) write_whole(script_in(subject.scratch), kCompareScript);
    write_whole(job_of(subject), describe_job(subject).dump());
    subject.held = {};  // or it would take the memory of what is measured
  });
  on_every_rank(subject.world, [&] { start_loaders(subject); });
  auto answers = false;
  std::string failure;
  std::vector<OtherLoader> able;
  for (auto& loader : loaders) {
    auto why = failure_of([&] { on_every_rank(subject.world, [&] { introduce(subject, loader, answers); }); });
    if (why.empty()) {
      able.push_back(loader);
    } else {
      failure = std::move(why);
      console.say(fmt::format("bench    without {}: {}", loader.way, failure));
    }
  }
  on_every_rank(subject.world, [&, &command = python] {
    if (!answers) throw IoError(ExitCode::io, failure, command);
  });
  loaders = std::move(able);
  std::vector<StepResult::LeftOut> failed;
  for (auto const& loader : loaders) {
    auto const check = [&] { on_every_rank(subject.world, [&] { require_same_tensors(subject, loader); }); };
    if (loader.way == kOurs) {
      check();
    } else if (auto why = failure_of(check); !why.empty()) {
      failed.push_back({.name = loader.way, .why = std::move(why)});
    }
  }
  forget_loaders(subject, failed, console);
}

void forget_loaders(BenchSubject& subject, std::vector<StepResult::LeftOut> const& failed, Console& console) {
  for (auto const& [way, why] : failed) {
    console.warn(fmt::format("{} is not compared: {}", way, why));
    std::erase_if(subject.comparison.loaders, [&name = way](OtherLoader const& loader) { return loader.way == name; });
  }
}

Step compare_step(BenchSubject& subject) { return comparison_of(subject, "compare"); }

Step compare_cold_step(BenchSubject& subject) {
  auto step = comparison_of(subject, "compare-cold");
  make_cold(subject, step);
  return step;
}

}  // namespace rankslice::cli

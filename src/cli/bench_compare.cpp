#include "cli/bench_compare.hpp"

#include <fmt/format.h>

#include <span>

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

std::string script_in(std::string const& scratch) { return scratch + "/compare.py"; }
std::string job_of(BenchSubject const& subject) {
  return fmt::format("{}/compare-{}.json", subject.scratch, subject.world.rank());
}

std::unique_ptr<PythonProcess> start_python(BenchSubject const& subject, std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), script_in(subject.scratch));
  return std::make_unique<PythonProcess>(subject.comparison.python, std::move(arguments),
                                         fmt::format("{}/compare-{}.err", subject.scratch, subject.world.rank()));
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
          {"tensors", tensors}};
}

/// The slowest thing here: every library loads once before it is timed, and every byte of it is looked at.
void require_same_tensors(BenchSubject const& subject, std::string const& way) {
  auto const differences = Json::parse(start_python(subject, {job_of(subject), "check", way})->line(subject.alive));
  if (differences.empty()) return;
  auto const first = differences.front().get<std::string>();
  throw VerifyError(fmt::format("{} does not load what the checkpoint has: {}, the first: {}", way,
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
          .clean = [loaded] { *loaded = {}; }};
}

Run their_run(BenchSubject& subject, OtherLoader const& loader) {
  struct State {
    std::unique_ptr<PythonProcess> python;
    Json found;
  };
  auto const state = std::make_shared<State>();
  auto const version = loader.version.empty() ? "" : loader.version + ": ";
  return {.name = loader.way,
          .meaning = version + "by one fresh process for each rank, its libraries imported before",
          .bytes = subject.plain->bytes(),
          .keeps_memory = true,
          .work =
              [&subject, state] {
                state->python->tell("go\n");
                state->found = Json::parse(state->python->line(subject.alive));
              },
          .prepare =
              [&subject, state, way = loader.way] {
                state->python = start_python(subject, {job_of(subject), "time", way});
                static_cast<void>(state->python->line(subject.alive));  // "ready"
              },
          .clean = [state] { state->python.reset(); },
          .memory_elsewhere = [state]() -> std::optional<ResidentMemory> {
            auto const& found = state->found;
            if (found["peak"] == 0) return std::nullopt;
            return ResidentMemory{.kept = found["kept"], .before = found["before"], .peak = found["peak"]};
          }};
}

Step comparison_of(BenchSubject& subject, std::string name) {
  Step step{.name = std::move(name), .runs = {}, .comparisons = {}, .takes_memory = true};
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
  std::vector<std::byte> found;
  on_every_rank(subject.world, [&] {
    if (subject.world.rank() != 0) return;
    write_whole(script_in(subject.scratch), kCompareScript);
    auto const text = start_python(subject, {})->line(subject.alive);
    auto const bytes = std::as_bytes(std::span(text));
    found.assign(bytes.begin(), bytes.end());
  });
  broadcast_vector(subject.world, found, 0);
  auto const* const text = reinterpret_cast<char const*>(found.data());
  auto const ways = Json::parse(text, text + found.size());
  for (auto const& [way, facts] : ways.items()) {
    if (facts.contains("version")) {
      subject.comparison.loaders.push_back({.way = way, .version = facts["version"]});
    } else {
      console.say(fmt::format("bench    without {}: {}", way, facts["why_not"].get<std::string>()));
    }
  }
}

Step compare_step(BenchSubject& subject) {
  write_whole(job_of(subject), describe_job(subject).dump());
  subject.held = {};  // or it would take the memory of what is measured
  for (auto const& loader : subject.comparison.loaders) require_same_tensors(subject, loader.way);
  return comparison_of(subject, "compare");
}

Step compare_cold_step(BenchSubject& subject) {
  auto step = comparison_of(subject, "compare-cold");
  make_cold(subject, step);
  return step;
}

}  // namespace rankslice::cli

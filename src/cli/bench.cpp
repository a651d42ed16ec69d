#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <memory>

#include "rankslice/load.hpp"

#include "agreed_threads.hpp"
#include "cli/bench_command.hpp"
#include "cli/bench_compare.hpp"
#include "cli/bench_report.hpp"
#include "cli/bench_scratch.hpp"
#include "cli/bench_steps.hpp"
#include "cli/commands.hpp"
#include "cli/listing.hpp"
#include "core/literals.hpp"
#include "plan/plan.hpp"
#include "synth/presets.hpp"
#include "synth/synth.hpp"

namespace rankslice::cli {

namespace fs = std::filesystem;

namespace {

constexpr auto kRoomForTheRest = 64_MiB;  // headers, small files, what a file system keeps for itself

/// @throws UsageError for a step that one rank alone cannot do
std::vector<BenchStep> selected_steps(Options const& options, int ranks) {
  std::vector<BenchStep> steps;
  for (auto const& step : bench_steps()) {
    auto const asked = std::ranges::find(options.steps, step.name) != options.steps.end();
    auto const possible = ranks > 1 || !step.needs_peers;
    if (asked && !possible) throw UsageError(fmt::format("--steps {}: one rank talks to nobody", step.name));
    auto const usual = options.steps.empty() && possible && !step.is_cold;
    if (asked || usual || (options.cold && step.is_cold)) steps.push_back(step);
  }
  if (options.compare.empty()) return steps;
  if (options.steps.empty()) steps.clear();
  steps.push_back({.name = "compare", .make = compare_step});
  if (options.cold) steps.push_back({.name = "compare-cold", .is_cold = true, .make = compare_cold_step});
  return steps;
}

std::string scratch_place(Options const& options) {
  if (!options.scratch.empty()) return options.scratch;
  auto const* const temporary = std::getenv("TMPDIR");
  return temporary != nullptr && *temporary != '\0' ? temporary : ".";
}

/// A folder of ours would not be a part of the checkpoint, but would be seen in it.
void require_outside(std::string const& place, std::string const& checkpoint) {
  auto const relative = fs::weakly_canonical(place).lexically_relative(fs::weakly_canonical(checkpoint));
  if (relative.empty() || *relative.begin() == "..") return;
  throw IoError(ExitCode::cannot_create,
                fmt::format("{}: lies in {}, which is an input; --scratch names another place", place, checkpoint),
                place);
}

std::uint64_t tensor_bytes(Checkpoint const& checkpoint) {
  std::uint64_t bytes = 0;
  for (auto const& tensor : checkpoint.catalog.tensors) bytes += tensor.extent.bytes.size();
  return bytes;
}

std::uint64_t carried_bytes(Checkpoint const& checkpoint) {
  auto bytes = tensor_bytes(checkpoint);
  for (auto const& side : checkpoint.hf.side_files) bytes += side.size;
  return bytes;
}

/// What this rank reads to load its slice.
std::vector<Extent> owned_extents(Checkpoint const& checkpoint, LoadPlan const& plan) {
  std::vector<Extent> extents;
  for (auto const& wanted : plan.slices) {
    for (auto const& located : locate(checkpoint.storage, checkpoint.model, wanted)) {
      for (auto const& bytes : read_ranges(checkpoint.model, checkpoint.storage.form, located)) {
        extents.push_back({.file = located.piece->extent.file, .bytes = bytes});
      }
    }
  }
  return extents;
}

/// One `bench`: the checkpoint that it measures and the folder that it fills and removes. Every function is collective.
class Bench {
 public:
  explicit Bench(Job& job)
      : job_(job),
        steps_(selected_steps(job.options, job.world.size())),
        writes_(std::ranges::any_of(steps_, &BenchStep::writes)),
        subject_{.world = job.world,
                 .call = {.reading = job.options.reading(),
                          .threads = job.options.threads,
                          .progress = [](Progress const&) { stop_when_asked(); }},
                 .huge_pages = job.options.huge_pages(),
                 .alive =
                     [&world = job.world] {
                       world.progress();
                       stop_when_asked();
                     },
                 .plain_mpi = job.plain_mpi,
                 .comparison = {.python = job.options.compare, .patience = job.options.timeout()}} {}

  void run() {
    auto const& input = job_.options.input;
    if (!input.empty()) open(input);
    if (input.empty() || writes_ || compares()) take_scratch();
    if (job_.options.dry_run) return say_what_would_be_done();
    if (input.empty()) open(synthesize_checkpoint());
    prepare();
    if (compares()) prepare_comparison();
    for (auto const& step : steps_) measure_step(step);
    tell();
  }

 private:
  static void stop_when_asked() {
    if (auto const code = stop_code()) throw Interrupted(*code);
  }

  void open(std::string const& path);
  void take_scratch();
  void make_scratch(std::string const& place);
  [[nodiscard]] std::string synthesize_checkpoint();
  void prepare();
  void find_backends();
  [[nodiscard]] bool compares() const { return !job_.options.compare.empty(); }
  void prepare_comparison();
  void hold();
  void measure_step(BenchStep const& known);
  void describe();
  void tell();
  void say_what_would_be_done() {
    for (auto const& step : steps_) {
      job_.console.say(fmt::format("bench    would measure {}, {}", step.name,
                                   counted(static_cast<std::uint64_t>(job_.options.bench_repeats()), "repeat")));
    }
  }

  [[nodiscard]] SynthOptions synth_options() const {
    auto const& options = job_.options;
    auto const preset = options.preset.empty() ? "small" : options.preset;
    return {.family = options.family, .preset = preset};
  }

  Job& job_;
  std::vector<BenchStep> steps_;
  bool writes_;
  std::unique_ptr<ScratchFolder> scratch_;  // on rank 0
  BenchSubject subject_;
  BenchReport report_;
};

void Bench::open(std::string const& path) {
  subject_.checkpoint = open_checkpoint(path, job_.world, job_.open_options());
  for (auto const& warning : subject_.checkpoint->warnings) job_.console.warn(warning);
}

void Bench::take_scratch() {
  auto const& input = job_.options.input;
  auto const place = scratch_place(job_.options);
  on_every_rank(job_.world, [&] {
    if (job_.world.rank() != 0) return;
    auto dry = synth_options();
    dry.dry_run = true;
    auto const bytes = input.empty() ? synthesize("", dry).bytes : carried_bytes(*subject_.checkpoint);
    auto const wanted = (input.empty() ? bytes : 0) + (writes_ ? bytes + bytes / 16 : 0) + kRoomForTheRest;
    if (!input.empty()) require_outside(place, input);
    require_free_space(place, wanted);
    for (auto const& leftover : ScratchFolder::others_in(place)) {
      job_.console.warn(leftover +
                        ": belongs to a run that still goes on, or to one that was killed and left it behind");
    }
    job_.console.say(fmt::format("bench    {} up to {} into a folder of its own below {}, and removes it",
                                 job_.options.dry_run ? "would write" : "writes", human_bytes(wanted),
                                 fs::weakly_canonical(place).string()));
  });
  if (!job_.options.dry_run) make_scratch(place);
}

void Bench::make_scratch(std::string const& place) {
  std::vector<std::byte> name;
  on_every_rank(job_.world, [&] {
    if (job_.world.rank() != 0) return;
    scratch_ = std::make_unique<ScratchFolder>(place);
    auto const bytes = std::as_bytes(std::span(scratch_->path()));
    name.assign(bytes.begin(), bytes.end());
  });
  broadcast_vector(job_.world, name, 0);
  auto& path = subject_.scratch;
  path.assign(reinterpret_cast<char const*>(name.data()), name.size());
  on_every_rank(job_.world, [&] {
    std::error_code error;
    if (fs::is_directory(path, error)) return;
    throw IoError(ExitCode::cannot_create, path + ": not seen by this rank; --scratch must be shared by all", path);
  });
}

std::string Bench::synthesize_checkpoint() {
  auto const path = subject_.scratch + "/checkpoint";
  on_every_rank(job_.world, [&] {
    if (job_.world.rank() != 0) return;
    auto options = synth_options();
    options.call.progress = [this](Progress const& progress) {
      subject_.alive();
      job_.console.progress(progress);
    };
    synthesize(path, options);
  });
  return path;
}

void Bench::prepare() {
  auto& subject = subject_;
  auto const& checkpoint = *subject.checkpoint;
  subject.call = with_threads(subject.call, job_.world);
  on_every_rank(job_.world, [&] {
    subject.mesh = make_mesh(job_.world.size(), job_.options.ep, job_.options.ep_shard);
    auto const plan = make_load_plan(checkpoint.model, checkpoint.storage.form, subject.mesh,
                                     subject.mesh.coordinate(job_.world.rank()));
    subject.extents = owned_extents(checkpoint, plan);
    subject.plain = std::make_shared<PlainReader const>(checkpoint.storage, subject.extents, subject.call.threads);
    subject.plain->warm_page_cache(subject.alive);
    subject.owned_bytes = plan.bytes_owned;
  });
  find_backends();
}

/// What only some of the ranks can do is measured on none.
void Bench::find_backends() {
  auto& subject = subject_;
  on_every_rank(job_.world, [&] {
    try {
      subject.direct = std::make_shared<PlainReader const>(subject.checkpoint->storage, subject.extents,
                                                           subject.call.threads, PlainReader::Way::direct);
    } catch (IoError const& refused) {
      job_.console.detail(refused.what());
    }
  });
  std::vector<std::uint64_t> can{subject.direct != nullptr ? 1U : 0U, why_no_uring_engine().empty() ? 1U : 0U};
  job_.world.all_reduce(can, Reduce::min);
  if (can[0] == 0) subject.direct.reset();
  subject.has_uring = can[1] != 0;
}

void Bench::prepare_comparison() {
  subject_.comparison.open = [this] {
    return open_checkpoint(subject_.checkpoint->path, job_.world, job_.open_options());
  };
  on_every_rank(job_.world, [&] { require_comparable(*subject_.checkpoint); });
  hold();
  find_other_loaders(subject_, job_.console);
}

/// Load what the steps after `load` work on.
void Bench::hold() {
  LoadOptions const options{.huge_pages = subject_.huge_pages, .call = subject_.call};
  subject_.held = load(subject_.checkpoint, subject_.mesh, job_.world, options);
}

void Bench::measure_step(BenchStep const& known) {
  auto const repeats = job_.options.bench_repeats();
  if (known.uses_held && subject_.held.tensors.empty()) hold();
  Step step;
  on_every_rank(job_.world, [&] { step = known.make(subject_); });
  job_.console.say(fmt::format("bench    {}: {}, {} each", known.name, counted(step.runs.size(), "run"),
                               counted(static_cast<std::uint64_t>(repeats), "repeat")));
  report_.steps.push_back(measure(step, repeats, job_.world, [&](std::uint64_t done, std::uint64_t total) {
    subject_.alive();
    job_.console.progress({.phase = known.name, .done = done, .total = total});
  }));
  forget_loaders(subject_, report_.steps.back().left_out, job_.console);
}

void Bench::describe() {
  auto const& options = job_.options;
  auto const& checkpoint = *subject_.checkpoint;
  report_.checkpoint = options.input;
  report_.preset = options.input.empty() ? synth_options().preset : "";
  report_.family = checkpoint.family;
  report_.format = checkpoint.format;
  report_.file_system = file_system_of(checkpoint.path);
  report_.tensors = checkpoint.catalog.tensors.size();
  report_.bytes = tensor_bytes(checkpoint);
  report_.mesh = subject_.mesh;
  report_.comm = job_.world.kind();
  report_.repeats = options.bench_repeats();
  report_.huge_pages = options.hugepages;
  report_.loaders = subject_.comparison.loaders;
  if (!subject_.scratch.empty()) {
    report_.scratch = fs::weakly_canonical(scratch_place(options)).string();
    report_.scratch_file_system = file_system_of(report_.scratch);
  }
  report_.ranks = describe_ranks(job_.world);
}

void Bench::tell() {
  describe();
  auto versions = job_.report["versions"];
  job_.report = to_json(report_);
  job_.report["versions"] = std::move(versions);
  job_.report["seconds"] = Json::object();
  on_every_rank(job_.world, [&] {
    if (job_.world.rank() != 0) return;
    if (!job_.options.json) print_data(to_text(report_));
    auto const& path = job_.options.chart;
    if (!path.empty()) write_whole(path, svg_chart(to_chart(report_, bench_command(job_.options, job_.world.size()))));
  });
}

}  // namespace

void bench(Job& job) { Bench(job).run(); }

}  // namespace rankslice::cli

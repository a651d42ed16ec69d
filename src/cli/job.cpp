#include "cli/job.hpp"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "rankslice/store.hpp"

#include "agreed_threads.hpp"
#include "cli/manifest_output.hpp"
#include "cli/version.hpp"
#include "core/threads.hpp"
#include "hf_target.hpp"
#include "io/file.hpp"
#include "io/processors.hpp"

namespace rankslice::cli {

namespace fs = std::filesystem;

namespace {

std::sig_atomic_t volatile signal_number = 0;

extern "C" void remember_signal(int number) { signal_number = number; }

std::uint64_t peak_rss_bytes() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::uint64_t>(usage.ru_maxrss) * 1024;
}

std::vector<std::byte> to_bytes(std::string const& text) {
  auto const bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

bool lies_below(fs::path const& path, fs::path const& folder) {
  auto const relative = path.lexically_relative(folder);
  return !relative.empty() && *relative.begin() != "..";
}

/// No output may replace what is read to make it.
void spare_input(std::string const& output, std::string const& input) {
  if (input.empty()) return;
  std::error_code ignored;
  auto const out = fs::weakly_canonical(output, ignored);
  auto const in = fs::weakly_canonical(input, ignored);
  if (lies_below(in, out) || (lies_below(out, in) && fs::exists(out, ignored))) {
    throw IoError(ExitCode::cannot_create, fmt::format("{}: would replace {}, which is an input", output, input),
                  output);
  }
}

Json describe_reread(Reread const& reread) {
  return {{"by", reread.another_rank ? "another rank" : "the same rank"},
          {"on", reread.another_host ? "another host" : "the same host"},
          {"past_page_cache", reread.past_page_cache},
          {"bytes", reread.bytes}};
}

}  // namespace

bool same_place(std::string const& a, std::string const& b) {
  std::error_code ignored;
  return fs::weakly_canonical(a, ignored) == fs::weakly_canonical(b, ignored);
}

void catch_signals() {
  struct sigaction action {};
  action.sa_handler = remember_signal;
  // Calls go on: what one of a library makes of an interruption would be taken for an error of the file.
  action.sa_flags = SA_RESTART | static_cast<int>(SA_RESETHAND);  // the second Ctrl-C does not ask any more
  ::sigaction(SIGINT, &action, nullptr);
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGTERM, &action, nullptr);
  action.sa_handler = SIG_IGN;  // an output limit or a closed pipe is an error of the write, with a message
  ::sigaction(SIGXFSZ, &action, nullptr);
  ::sigaction(SIGPIPE, &action, nullptr);
}

void allow_many_files() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);  // when it may not, the opening of a file will say so
}

std::optional<ExitCode> stop_code() {
  if (signal_number == 0) return std::nullopt;
  return signal_number == SIGTERM ? ExitCode::terminated : ExitCode::interrupted;
}

Job::Job(Options const& job_options, Communicator& job_world, Console& job_console, MpiFacts job_mpi)
    : options(job_options), world(job_world), console(job_console), mpi(std::move(job_mpi)) {
  console.join(world);
  report = {{"schema", "rankslice.report/1"},
            {"command", options.command},
            {"ok", false},
            {"family", nullptr},
            {"ranks", world.size()},
            {"mesh", nullptr},
            {"device", "cpu"},
            {"comm", world.kind()},
            {"seconds", {{"total", 0.0}}},
            {"bytes", Json::object()},
            {"rank", Json::array()},
            {"verify",
             {{"level", "off"},
              {"reference", "none"},
              {"tensors", 0},
              {"experts", 0},
              {"mismatches", Json::array()},
              {"unlisted_mismatches", 0}}},
            {"choices",
             {{"dense", "each-rank"},
              {"io", nullptr},
              {"digest", digests(options.verify_level()) ? "while reading" : "off"},
              {"device", "cpu"},
              {"comm", world.kind()}}},
            {"dry_run", options.dry_run},
            {"versions", {{"rankslice", kVersion}}}};
  if (!mpi.version.empty()) report["versions"]["mpi"] = mpi.version;
}

void Job::decide_threads() {
  if (options.threads > 0) on_every_rank(world, [&] { require_threads(options.threads); });
  if (world.size() > 1 || options.threads > 0) {
    threads_ = with_threads({.threads = options.threads}, world).threads;
  } else {
    threads_ = fair_threads(own_processors(), common_processors(), processes_of_host());
  }
  report["choices"]["threads"] = threads_;
  console.detail(fmt::format("threads  {} on this rank{}", threads_, options.threads > 0 ? ", as asked for" : ""));
}

CallOptions Job::call() {
  auto reading = options.reading();
  reading.tell = [this](ReadPart const& part) {
    readings_.add(part);
    report["choices"]["io"] = readings_.ways();
  };
  return {
      .reading = std::move(reading),
      .threads = threads_,
      .progress =
          [this](Progress const& progress) {
            if (auto const code = stop_code()) throw Interrupted(*code);
            last_block_ = std::chrono::steady_clock::now();
            console.progress(progress);
            timeline_.add_block(progress);
            got_on();
          },
      .notice = [this](Notice const& notice) { notice.warning ? console.warn(notice.text) : console.say(notice.text); },
  };
}

OpenOptions Job::open_options() const {
  return {.family = options.family,
          .store = &native_store(),
          .source = options.source,
          .expert_layout = parse_expert_layout(options.expert_layout).value(),
          .dtype = options.open_dtype(),
          .text_only = options.text_only ? std::optional(true) : std::nullopt,
          .manifest = options.manifest,
          .without_manifest = options.overwrite && writes_to_reference(options),
          .threads = options.rank ? threads_ : options.threads};
}

OpenOptions Job::open_options_of_other() const {
  auto open = open_options();
  open.source.clear();
  open.manifest.clear();
  open.without_manifest = false;
  return open;
}

std::shared_ptr<Checkpoint const> Job::open_input() {
  std::shared_ptr<Checkpoint const> checkpoint;
  timed("open", [&] { checkpoint = open_checkpoint(options.input, world, open_options()); });
  report_checkpoint(*checkpoint);
  for (auto const& warning : checkpoint->warnings) console.warn(warning);
  return checkpoint;
}

std::shared_ptr<Checkpoint const> Job::open_selected() { return select(open_input()); }

std::shared_ptr<Checkpoint const> Job::select(std::shared_ptr<Checkpoint const> const& checkpoint) {
  std::shared_ptr<Checkpoint const> selected;
  on_every_rank(world, [&] { selected = select_tensors(checkpoint, keys()); });
  report_selection(checkpoint->model);
  report_headers(selected->hf.headers);
  return selected;
}

void Job::expect_free(std::string const& output, StagedOutput::Kind kind, bool overwrite, bool resumes) {
  on_every_rank(world, [&] {
    if (output.empty() || world.rank() != 0) return;
    auto const is_manifest = writes_to_reference(options) && same_place(output, manifest_output(options));
    for (auto const* input : {&options.input, &options.source, &options.against, &options.manifest}) {
      if (!is_manifest) spare_input(output, *input);
    }
    for (auto const* other : {&options.store, &options.save_shards, &options.output, &options.report,
                              &options.metrics_file, &options.trace}) {
      if (other != &output && !other->empty() && same_place(output, *other)) {
        throw IoError(ExitCode::cannot_create, output + ": is given for two outputs", output);
      }
    }
    StagedOutput const made_and_removed(output, kind, overwrite);
    if (kind == StagedOutput::Kind::file) (void)FileWriter::create(made_and_removed.path());
    if (resumes) return;
    for (auto const& warning : made_and_removed.warnings()) console.warn(warning);
  });
}

void Job::report_ranks(RankBytes const& bytes, double seconds_load, Device const* device) {
  Json mine{{"rank", world.rank()},
            {"host", world.host(world.rank())},
            {"bytes_read", bytes.read},
            {"bytes_wanted", bytes.wanted},
            {"bytes_owned", bytes.owned},
            {"threads", threads_},
            {"threads_reading", readings_.threads()},
            {"seconds_load", seconds_load},
            {"peak_rss_bytes", peak_rss_bytes()}};
  if (device != nullptr) {
    mine["device"] = device->name();
    mine["peak_device_bytes"] = device->peak_bytes();
  }
  RankBytes all;
  for (auto const& packed : world.gather(to_bytes(mine.dump()), 0)) {
    auto const* const text = reinterpret_cast<char const*>(packed.data());
    auto rank = Json::parse(text, text + packed.size());
    all.wanted += rank["bytes_wanted"].get<std::uint64_t>();
    all.read += rank["bytes_read"].get<std::uint64_t>();
    all.owned += rank["bytes_owned"].get<std::uint64_t>();
    report["rank"].push_back(std::move(rank));
  }
  report["bytes"]["wanted"] = all.wanted;
  report["bytes"]["read"] = all.read;
  report["bytes"]["owned"] = all.owned;
}

void Job::report_mesh(Mesh const& mesh) {
  report["ranks"] = mesh.ranks();
  report["mesh"] = {{"ep_replicate", mesh.ep_replicate}, {"ep_shard", mesh.ep_shard}, {"ep", mesh.ep}};
}

void Job::report_checkpoint(Checkpoint const& checkpoint) {
  report["family"] = checkpoint.family;
  std::uint64_t bytes = 0;
  for (auto const& tensor : checkpoint.model.tensors) bytes += byte_size(tensor.dtype, tensor.shape);
  report["bytes"]["checkpoint"] = bytes;
  if (!checkpoint.hf.left_out.empty()) report["left_out"] = checkpoint.hf.left_out;
  if (!checkpoint.warnings.empty()) report["warnings"] = checkpoint.warnings;
}

void Job::report_selection(Model const& model) {
  if (!keys()) return;
  auto const& all = model.tensors;
  auto const taken = taken_tensors(model, keys());
  std::uint64_t tensors = 0, bytes = 0;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (!taken[i]) continue;
    ++tensors;
    bytes += byte_size(all[i].dtype, all[i].shape);
  }
  report["selection"] = {{"include", options.include},
                         {"exclude", options.exclude},
                         {"tensors", tensors},
                         {"of_tensors", all.size()},
                         {"bytes", bytes}};
  console.say(fmt::format("selected {} of {} tensors, {}", tensors, all.size(), human_bytes(bytes)));
}

void Job::report_headers(HeaderOrigin headers) {
  report["headers"] = {{"origin", name(headers)}};
  if (headers == HeaderOrigin::source) return;
  report["headers"]["fresh_because"] = why_fresh(headers);
  console.say(fmt::format("headers and index are fresh: {}", why_fresh(headers)));
}

void Job::report_verify(VerifyReport const& verified) {
  auto& entry = report["verify"];
  entry["level"] = name(verified.level);
  entry["reference"] = verified.reference;
  if (verified.reread) entry["reread"] = describe_reread(*verified.reread);
  if (verified.without_codes) entry["codes"] = "not compared";
  entry["tensors"] = verified.tensors;
  entry["experts"] = verified.experts;
  if (verified.experts_in_part > 0) entry["experts_in_part"] = verified.experts_in_part;
  for (auto const& mismatch : verified.mismatches) {
    Json item{{"tensor", mismatch.tensor}, {"what", mismatch.what}};
    if (mismatch.expert >= 0) item["expert"] = mismatch.expert;
    if (mismatch.rank >= 0) item["rank"] = mismatch.rank;
    entry["mismatches"].push_back(std::move(item));
  }
  entry["unlisted_mismatches"] = verified.unlisted;
}

void Job::report_written(std::uint64_t bytes, std::optional<Resumed> const& resumed) {
  std::vector<std::uint64_t> written{bytes};
  world.all_reduce(written, Reduce::sum);
  report["bytes"]["written"] = written.front();
  if (resumed) report["resumed"] = {{"segments", resumed->segments}, {"of", resumed->of}, {"bytes", resumed->bytes}};
}

}  // namespace rankslice::cli

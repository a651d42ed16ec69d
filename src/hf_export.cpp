#include "hf_export.hpp"

#include <algorithm>
#include <utility>

#include "agreed_threads.hpp"
#include "copied_slices.hpp"
#include "gathered_tensors.hpp"
#include "hf_files.hpp"
#include "parallel_reading.hpp"
#include "unit_sums.hpp"
#include "verify/compare.hpp"

namespace rankslice {

namespace {

std::optional<Recording> recording_of(ExportOptions const& options, Recording const& recording) {
  return options.resume ? std::optional(recording) : std::nullopt;
}

}  // namespace

HfExport::HfExport(ExportPlan const& plan, ExportSubject subject, std::string const& out_dir, Communicator& world,
                   ExportOptions const& options, Recording const& recording)
    : model_(plan.target.model),
      plan_(plan),
      subject_(std::move(subject)),
      world_(world),
      call_(with_threads(options.call, world)),
      passes_(subject_.values.models().size()),
      alive_(watch({.stop = options.call.stop}, "to_hf", 0, &world)),
      output_(out_dir, StagedOutput::Kind::folder, options.overwrite, world, subject_.key, options.call.notice),
      files_(target_storage(plan.target.files, model_, output_.path())),
      stages_(output_, plan.segments, *this, world, recording_of(options, recording)) {}

void HfExport::write() { stages_.run(create_files(), call_); }

ExportReport HfExport::publish(std::uint64_t streamed) {
  auto const& hf = plan_.target.files.hf;
  ExportReport report{.headers = hf.headers, .bytes_read = streamed, .files = hf.files.size()};
  on_every_rank(world_, [&] {
    if (world_.rank() == 0) add_other_files(hf, output_.path(), alive_);
    report.bytes_read += originals_read();
    report.bytes_written = bytes_written();
    report.resumed = stages_.resumed();
  });
  output_.publish();
  return report;
}

std::vector<PlannedSlice> HfExport::taken_by(int rank) const {
  std::vector<PlannedSlice> taken;
  for (auto const& units : stages_.stages()) {
    auto const of_stage = taken_for(part_of(plan_, units, rank), rank);
    taken.insert(taken.end(), of_stage.begin(), of_stage.end());
  }
  return taken;
}

std::vector<PlannedSlice> HfExport::taken_before(int rank) const {
  return taken_for(part_of(plan_, stages_.units_taken_over(), rank), rank);
}

std::vector<Model const*> HfExport::models() const {
  auto models = subject_.values.models();
  models.insert(models.end(), 2, &model_);
  return models;
}

UnitWriter::Tables HfExport::none() const {
  auto tables = subject_.values.passes();
  for (auto& digests : tables) digests = without(digests, digests);
  tables.insert(tables.end(), 2, Digests(model_));
  return tables;
}

void HfExport::expect(std::vector<PlannedSlice> const& to_read_back, std::vector<PlannedSlice> const& to_write) {
  done_ = watch(call_, "to_hf", bytes_to_move(to_read_back, to_write), &world_);
}

UnitWriter::Tables HfExport::write(std::vector<PlannedSlice> const& units) {
  ExportPart part;
  Tables before;
  Digests copied;
  on_every_rank(world_, [&] {
    part = part_of(plan_, units, world_.rank());
    before = subject_.values.passes();
    copied = Digests(model_);
    subject_.values.tensors().expect(taken_for(part, world_.rank()));
  });
  auto written = part.gather ? write_gathered(*part.gather) : write_own(part.slices.computed);
  if (plan_.originals) copied = write_copies(part.slices.copied);
  Tables tables;
  on_every_rank(world_, [&] {
    check_read_back(model_, part.slices.computed, files_, written, reading_back(call_, done_));
    tables = subject_.values.passes();
    for (std::size_t i = 0; i < passes_; ++i) tables[i] = without(before[i], std::move(tables[i]));
    tables.push_back(std::move(written));
    tables.push_back(std::move(copied));
  });
  return tables;
}

UnitWriter::Tables HfExport::read_back(std::vector<PlannedSlice> const& units) {
  Tables found;
  on_every_rank(world_, [&] {
    auto const slices = part_of(plan_, units, world_.rank()).slices;
    found.assign(2, Digests(model_));
    found[0] = digest_slices(model_, slices.computed, files_, reading_back(call_, done_));
    found[1] = digest_copies(model_, slices.copied, files_, done_);
  });
  return found;
}

bool HfExport::compares_sums() const {
  return plan_.gather || plan_.originals || !subject_.values.known_to_each_rank();
}

void HfExport::require_equal(Tables const& tables, std::vector<PlannedSlice> const& units, Whose whose) const {
  auto const comparable = subject_.values.known_to_each_rank() && !plan_.gather;
  if (whose == Whose::this_rank && !comparable) return;
  std::vector<Digests> const passes(tables.begin(), tables.begin() + static_cast<std::ptrdiff_t>(passes_));
  subject_.values.require_written(passes, tables[passes_], units);
  if (whose == Whose::this_rank || !plan_.originals) return;
  auto const require = [&](std::string_view name, std::optional<Digests> const& digests) {
    if (!digests) return;
    auto const expected = of_units(model_, of_copies(plan_.target, *digests), units);
    rankslice::require_equal(model_, NamedTable{name, expected.source}, NamedTable{"copied", tables.back().source});
  };
  require("compared", subject_.compared);
  require(plan_.recorded_by, plan_.recorded);
}

/// All but the tensors; says which are new.
std::vector<bool> HfExport::create_files() {
  std::vector<std::uint64_t> made;
  std::vector<bool> known;
  on_every_rank(world_, [&] {
    made.resize(plan_.target.files.hf.files.size());
    known.resize(made.size());
    if (world_.rank() == 0)
      std::ranges::copy(create_hf_files(plan_.target.files.hf, output_.path(), alive_), made.begin());
  });
  if (output_.taken_over()) world_.all_reduce(made, Reduce::sum);
  known.assign(made.begin(), made.end());
  return known;
}

/// Of all passes over tensors; of one that only sends, those that it sends.
std::uint64_t HfExport::bytes_to_move(std::vector<PlannedSlice> const& units_there,
                                      std::vector<PlannedSlice> const& units_to_write) const {
  auto const to_write = part_of(plan_, units_to_write, world_.rank());
  auto const there = part_of(plan_, units_there, world_.rank()).slices;
  auto const copied = [&](ExportSlices const& slices) { return stored_bytes(files_, model_, slices.copied).wanted; };
  auto const again = stored_bytes(files_, model_, there.computed).read + copied(there);
  if (plan_.gather && world_.rank() != kWriter) {
    return plan_bytes(model_, slices_sent_by(*to_write.gather, world_.rank()), Form::native);
  }
  auto const written = stored_bytes(files_, model_, to_write.slices.computed);
  return written.wanted + written.read + 2 * copied(to_write.slices) + again;
}

std::uint64_t HfExport::bytes_written() const {
  std::uint64_t bytes = 0;
  for (auto const& units : stages_.stages()) {
    auto const slices = part_of(plan_, units, world_.rank()).slices;
    bytes += stored_bytes(files_, model_, slices.computed).wanted + stored_bytes(files_, model_, slices.copied).wanted;
  }
  return bytes;
}

Digests HfExport::write_own(std::vector<PlannedSlice> const& computed) {
  Digests written;
  on_every_rank(world_, [&] { written = write_slices(model_, computed, subject_.values.tensors(), files_, done_); });
  return written;
}

/// On one rank; the others send what they have.
Digests HfExport::write_gathered(GatherPlan const& gather) {
  GatherPaths const paths(route_to(kWriter, world_.size()), world_);
  std::optional<SliceWriter> writer;
  std::optional<GatheredTensors> gathered;
  on_every_rank(world_, [&] {
    writer.emplace(model_, files_, done_);
    gathered.emplace(model_, gather, paths, subject_.values.tensors(), world_.rank() == kWriter ? alive_ : done_);
  });
  gathered->gather([&](std::vector<PlannedSlice> const& slices, NativeSource& all) { writer->write(slices, all); });
  Digests written;
  on_every_rank(world_, [&] { written = writer->finish(); });
  return written;
}

Digests HfExport::write_copies(std::vector<PlannedSlice> const& copied) {
  Digests digests;
  on_every_rank(world_, [&] { digests = copy_slices(model_, copied, *plan_.originals, files_, call_.reading, done_); });
  on_every_rank(world_, [&] { check_copies(model_, copied, files_, digests, done_); });
  return digests;
}

/// Originals count once for comparing and once for copying.
std::uint64_t HfExport::originals_read() const {
  std::uint64_t read = 0;
  if (!plan_.originals) return read;
  for (auto const& units : stages_.stages()) {
    read += plan_bytes(model_, part_of(plan_, units, world_.rank()).slices.copied, Form::hf);
  }
  auto const compared = compared_slices(plan_, world_.rank());
  return subject_.compared ? read + plan_bytes(model_, compared, Form::hf) : read;
}

}  // namespace rankslice

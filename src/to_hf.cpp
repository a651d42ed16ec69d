#include "rankslice/to_hf.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "rankslice/verify.hpp"

#include "core/fingerprint.hpp"
#include "core/literals.hpp"
#include "io/file.hpp"
#include "io/staged_output.hpp"
#include "native_source.hpp"
#include "plan/plan.hpp"
#include "shared_output.hpp"
#include "storage_reader.hpp"
#include "verify/compare.hpp"
#include "verify/mesh_tables.hpp"

namespace rankslice {

namespace {

/// Where the tensors go: the source's own files, below `folder`.
Storage target_files(Checkpoint const& source, std::string const& folder) {
  Storage target{.form = Form::hf, .files = {}, .pieces = {}};
  for (auto const& file : source.catalog.files) {
    target.files.push_back({.name = file.name, .path = folder + "/" + file.name, .size = file.size});
  }
  for (std::uint32_t i = 0; i < source.parameters.size(); ++i) {
    target.pieces.push_back({i, {0, source.parameters[i].part_count()}, source.catalog.tensors[i].extent});
  }
  return target;
}

/// Every shard at its full size with its header: a full disk shows here, before a byte is moved.
void create_shards(HfLayout const& layout, std::string const& folder) {
  for (auto const& file : layout.files) {
    make_parent_folders(folder, file.name);
    auto writer = FileWriter::create(folder + "/" + file.name);
    writer.allocate(file.size);
    writer.write(file.header, 0);
    writer.sync();
    writer.close();
  }
}

void copy_side_file(SideFile const& side, std::string const& folder) {
  auto const reader = open_reader(side.path);
  auto writer = FileWriter::create(folder + "/" + side.name);
  Xxh3Stream checksum;
  std::vector<std::byte> block(4_MiB);
  for (std::uint64_t begin = 0; begin < side.size; begin += block.size()) {
    auto const part = std::span(block).first(std::min<std::uint64_t>(block.size(), side.size - begin));
    reader->read(part, side.offset + begin);
    checksum.add(part);
    writer.write(part, begin);
  }
  if (!side.checksum.empty() && side.checksum != checksum.hex()) {
    throw FormatError(
        fmt::format("{}: {}: checksum {}, expected {}", side.path, side.name, checksum.hex(), side.checksum),
        side.path);
  }
  writer.sync();
  writer.close();
}

/// The index comes last: a folder without it is no checkpoint.
void add_other_files(HfLayout const& layout, std::string const& folder) {
  for (auto const& side : layout.side_files) copy_side_file(side, folder);
  if (layout.index_name.empty()) return;
  auto writer = FileWriter::create(folder + "/" + layout.index_name);
  writer.write(layout.index, 0);
  writer.sync();
  writer.close();
}

void throw_if_different(Checkpoint const& checkpoint, NamedDigests const& expected, NamedDigests const& found) {
  VerifyReport report;
  report.mismatches = differences(checkpoint.parameters, expected, found, -1);
  report.throw_if_bad();
}

/// A streamed export: what was read is what was written, and what the source recorded.
void check_streamed(Checkpoint const& checkpoint, Digests read, Digests const& written, Communicator& world) {
  on_every_rank(world, [&] { throw_if_different(checkpoint, {"read", read}, {"written", written}); });
  world.all_reduce(read.source.values(), Reduce::sum);
  world.all_reduce(read.stored.values(), Reduce::sum);
  on_every_rank(world, [&] {
    if (!checkpoint.digests || world.rank() != 0) return;
    throw_if_different(checkpoint, {"recorded", *checkpoint.digests}, {"read", read});
  });
}

ExportReport write_checkpoint(Checkpoint const& source, std::vector<PlannedPart> const& plan, NativeSource& tensors,
                              std::string const& out_dir, Communicator& world, SaveOptions const& options,
                              std::function<void(Digests const& written)> const& check) {
  SharedOutput output(out_dir, StagedOutput::Kind::folder, options.overwrite, world);
  on_every_rank(world, [&] {
    if (world.rank() == 0) create_shards(source.hf, output.path());
  });

  auto const target = target_files(source, output.path());
  auto const bytes = plan_bytes(source.parameters, plan, Form::hf);
  auto const done = watch(options.call, "to_hf", 2 * bytes, &world);
  Digests written;
  on_every_rank(world, [&] { written = write_parts(source.parameters, plan, tensors, target, done); });
  on_every_rank(world, [&] { check_read_back(source.parameters, plan, target, written, done); });
  check(written);

  on_every_rank(world, [&] {
    if (world.rank() == 0) add_other_files(source.hf, output.path());
  });
  output.publish();
  return {.bytes_written = bytes, .files = source.hf.files.size()};
}

}  // namespace

ExportReport to_hf(StateDict const& state, std::string const& out_dir, Communicator& world,
                   SaveOptions const& options) {
  std::optional<HeldTensors> held;
  std::vector<PlannedPart> plan;
  on_every_rank(world, [&] {
    held.emplace(state);
    plan = make_save_plan(state.source->parameters, state.mesh, state.coordinate);
  });
  require_equal_replicas(state, options.call, world);
  return write_checkpoint(*state.source, plan, *held, out_dir, world, options, [](Digests const&) {});
}

ExportReport to_hf(Checkpoint const& checkpoint, std::string const& out_dir, Communicator& world,
                   SaveOptions const& options, VerifyLevel verify) {
  auto const mesh = make_mesh(world.size());
  auto const plan = make_save_plan(checkpoint.parameters, mesh, mesh.coordinate(world.rank()));
  StreamedTensors streamed(checkpoint.storage, checkpoint.parameters);
  return write_checkpoint(checkpoint, plan, streamed, out_dir, world, options, [&](Digests const& written) {
    on_every_rank(world, [&] { streamed.check_unchanged(); });
    if (verify == VerifyLevel::full) check_streamed(checkpoint, streamed.read(), written, world);
  });
}

}  // namespace rankslice

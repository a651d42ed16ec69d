#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <optional>

#include "rankslice/to_hf.hpp"

#include "agreed_holdings.hpp"
#include "agreed_threads.hpp"
#include "format/safetensors.hpp"
#include "format/shards.hpp"
#include "fresh_source.hpp"
#include "io/staged_output.hpp"
#include "native_source.hpp"
#include "plan/plan.hpp"
#include "shared_output.hpp"
#include "slice_writer.hpp"
#include "state/consistency.hpp"
#include "verify/compare.hpp"
#include "verify/rank_tables.hpp"
#include "watch.hpp"

namespace rankslice {

namespace {

/// A path that cannot be made absolute is kept as it was given. Of a state without a source it is empty, and stays so.
std::string absolute(std::string const& path) {
  std::error_code unresolved;
  auto const resolved = std::filesystem::absolute(path, unresolved);
  return path.empty() || unresolved ? path : resolved.string();
}

ShardMetadata describe(StateDict const& state) {
  auto const forms = expert_forms(*state.source);
  ShardMetadata shard{.mesh = state.mesh,
                      .coordinate = state.coordinate,
                      .family = state.source->family,
                      .source = absolute(state.source->source),
                      .source_fingerprint = state.source->source_fingerprint,
                      .fingerprint = state.source->fingerprint,
                      .headers = state.source->hf.headers,
                      .expert_layout = std::string(name(forms.expert_layout)),
                      .decoder_experts = std::string(name(forms.decoder_experts.value())),
                      .mtp_experts = std::string(name(forms.mtp_experts.value())),
                      .tensors = {}};
  for (auto const& [fqn, tensor] : state.tensors) {
    auto const& parameter = tensor.parameter;
    auto const hf_dtype = parameter.converted() ? std::optional(parameter.hf_dtype) : std::nullopt;
    shard.tensors[fqn] = {parameter.shape, tensor.offsets, hf_dtype};
  }
  return shard;
}

/// Write this rank's file at `path`, complete and read back. `expected`: the digests of what it holds.
void write_shard(StateDict const& state, HeldTensors& held, Digests const& expected, std::string const& path,
                 SaveOptions const& options, Communicator* world) {
  std::vector<SafetensorsHeader::Tensor> tensors;
  std::vector<PlannedSlice> plan;
  for (auto const& [fqn, tensor] : state.tensors) {
    tensors.push_back({fqn, tensor.parameter.dtype, tensor.local_shape, {}});
    plan.push_back({tensor.index, tensor.slice()});
  }
  auto const raw = make_safetensors_header(tensors, to_metadata(describe(state)));
  auto const& model = state.source->model;
  auto const bytes = plan_bytes(model, plan, Form::native);
  auto const size = raw.size() + bytes;

  Storage target{
      .form = Form::native, .files = {{shard_file_name(state.mesh.rank(state.coordinate)), path, size}}, .pieces = {}};
  for (auto const& tensor : parse_safetensors_header(raw, size, path).tensors) {
    auto const& local = state.tensors.at(tensor.name);
    target.pieces.push_back(
        {.parameter = local.index, .tensor = 0, .slice = local.slice(), .extent = {.file = 0, .bytes = tensor.bytes}});
  }
  std::ranges::sort(target.pieces, {}, &StoredPiece::parameter);

  auto writer = FileWriter::create(path);
  writer.allocate(size);
  writer.write(raw, 0);
  writer.close();
  auto const done = watch(options.call, "save_shards", 2 * bytes, world);
  auto const written = write_slices(model, plan, held, target, done);
  require_equal(model, NamedDigests{"held", expected}, NamedDigests{"written", written});
  check_read_back(model, plan, target, written, reading_back(options.call, done));
}

/// Beside anything else a shard would turn the folder into one of shards for who opens it.
void require_only_shards(std::string const& folder) {
  for (auto const& entry : std::filesystem::directory_iterator(folder)) {
    auto const name = entry.path().filename().string();
    if (name.starts_with("rank-") && name.find(".safetensors") != std::string::npos) continue;
    throw IoError(ExitCode::cannot_create, fmt::format("{}: holds {}; shards need a folder of their own", folder, name),
                  folder);
  }
}

}  // namespace

void save_shards(StateDict const& state, std::string const& out_dir, Communicator& world, SaveOptions const& given) {
  require_agreement(state, world);
  auto options = given;
  options.call = with_threads(given.call, world);
  auto const holdings = agree_on_holdings(state, world);
  std::optional<HeldTensors> held;
  Digests expected;
  on_every_rank(world, [&] {
    held.emplace(state);
    expected = digest_held(state, options.call, &world);
  });
  (void)in_all_ranks(state, holdings, expected, world);  // for the copies of a tensor that must be equal
  SharedOutput output(out_dir, StagedOutput::Kind::folder, options.overwrite, world);
  on_every_rank(world, [&] {
    write_shard(state, *held, expected, output.path() + "/" + shard_file_name(world.rank()), options, &world);
  });
  output.publish();
}

void save_shard(StateDict const& state, std::string const& out_dir, SaveOptions const& given) {
  auto options = given;
  options.call = with_threads(given.call);
  HeldTensors held(state);
  auto const expected = digest_held(state, options.call, nullptr);
  std::error_code error;
  std::filesystem::create_directory(out_dir, error);
  if (error) throw IoError(ExitCode::cannot_create, out_dir + ": " + error.message(), out_dir);
  require_only_shards(out_dir);
  auto const name = shard_file_name(state.mesh.rank(state.coordinate));
  StagedOutput output(out_dir + "/" + name, StagedOutput::Kind::file, options.overwrite);
  write_shard(state, held, expected, output.path(), options, nullptr);
  output.publish();
}

}  // namespace rankslice

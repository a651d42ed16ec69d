// What could go wrong in loading, one mistake at a time, done to what the loader reads or to what it leaves in memory;
// and which level of verification finds it. digest.md says what no level can find without a reference: that is here
// too, so that nobody promises more.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <optional>

#include "rankslice/load.hpp"
#include "rankslice/store.hpp"
#include "rankslice/to_hf.hpp"
#include "rankslice/verify.hpp"

#include "support/job_fixture.hpp"
#include "support/model_catalog.hpp"
#include "support/raw_checkpoint.hpp"
#include "verify/rank_tables.hpp"

namespace {

/// What the next reads of this process that reach a place of a file do; by the system's own `pread` when empty.
using Lie = std::function<::ssize_t(int fd, std::span<std::byte> out, ::off_t offset)>;
Lie& lie() {
  static Lie current;
  return current;
}

::ssize_t read_truly(int fd, std::span<std::byte> out, ::off_t offset) {
  return ::syscall(SYS_pread64, fd, out.data(), out.size(), offset);
}

}  // namespace

/// Takes the place of the C library's, under everything that is linked into this program.
extern "C" ::ssize_t pread(int fd, void* out, std::size_t size, ::off_t offset) {
  std::span const bytes(static_cast<std::byte*>(out), size);
  return lie() ? lie()(fd, bytes, offset) : read_truly(fd, bytes, offset);
}

namespace rankslice::test {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;

constexpr std::uint64_t kExperts = 7;
constexpr auto kPrefix = "model.language_model.layers.1.mlp.experts.";
constexpr auto kDownFqn = "model.language_model.layers.1.mlp.experts.down_projs";
constexpr auto kGateUpFqn = "model.language_model.layers.1.mlp.experts.gate_and_up_projs";

/// An expert that this rank holds.
std::span<std::byte> expert(StateDict& state, std::string const& fqn, std::uint64_t number) {
  auto& tensor = state.tensors.at(fqn);
  auto const one = tensor.data.bytes / tensor.local_shape[0];
  return {tensor.data.data.get() + (number - tensor.offsets[0]) * one, one};
}

void swap_bytes(std::span<std::byte> a, std::span<std::byte> b) { std::swap_ranges(a.begin(), a.end(), b.begin()); }

/// [rows, columns] of elements becomes what stood there before it was transposed: [columns, rows].
void undo_transpose(std::span<std::byte> matrix, Shape const& shape, std::uint64_t unit) {
  auto const turned = swap_axes(Bytes(matrix.begin(), matrix.end()), {1, shape[1], shape[2]}, unit);
  std::ranges::copy(turned, matrix.begin());
}

class Mutations : public JobTest {
 protected:
  static std::shared_ptr<Checkpoint const> source(std::string const& name = "checkpoint") {
    return open_checkpoint(path(name), world(), {.store = &native_store()});
  }
  static Mesh mesh() { return make_mesh(world().size()); }
  static StateDict load_from(std::shared_ptr<Checkpoint const> const& from) { return load(from, mesh(), world()); }
  static bool on_first() { return world().rank() == 0; }

  /// A checkpoint in the common folder, by rank 0.
  static void write_once(std::string const& name, Qwen35Shape const& shape) {
    on_every_rank(world(), [&] {
      if (!on_first() || std::filesystem::exists(path(name))) return;
      write_checkpoint(path(name), make_catalog(shape), make_config_json(shape));
    });
  }
  /// `change` on rank 0 only.
  static StateDict loaded_but(std::function<void(StateDict&)> const& change) {
    auto state = load_from(source());
    if (on_first()) change(state);
    return state;
  }
  static std::vector<std::string> found(StateDict const& state, VerifyOptions const& options = {}) {
    auto const report = verify(state, world(), options);
    std::vector<std::string> what;
    for (auto const& mismatch : report.mismatches) what.push_back(mismatch.what);
    return what;
  }
  static auto says(std::string const& rank, std::string const& expert, std::string const& tensor,
                   std::string const& whose = "") {
    return Contains(AllOf(HasSubstr("rank " + rank + ": layer 1, expert " + expert + " of " + kPrefix + tensor),
                          HasSubstr("read digest "), HasSubstr(", held "), HasSubstr(whose)));
  }
};

// Found by `full`, without a reference
// ---------------------------------------------------------------------------------

TEST_F(Mutations, NothingIsFoundInWhatWasLoadedWell) {
  auto const state = load_from(source());
  auto const report = verify(state, world());
  EXPECT_TRUE(report.ok());
  EXPECT_EQ(report.reference, "none");
}

TEST_F(Mutations, TwoExpertsOfOneRankThatChangedPlacesAreFoundByFull) {
  auto const state =
      loaded_but([](StateDict& held) { swap_bytes(expert(held, kDownFqn, 0), expert(held, kDownFqn, 1)); });
  EXPECT_THAT(found(state), AllOf(says("0", "0", "down_proj", "(holds the values of expert 1)"),
                                  says("0", "1", "down_proj", "(holds the values of expert 0)")));
  EXPECT_THAT(found(state, {.level = VerifyLevel::coverage}), IsEmpty());
}

TEST_F(Mutations, TwoExpertsOfTwoRanksThatChangedPlacesAreFoundByFull) {
  if (world().size() == 1) GTEST_SKIP() << "needs two ranks";
  auto state = load_from(source());
  auto const last = world().size() - 1;
  if (on_first() || world().rank() == last) {
    auto const mine = expert(state, kDownFqn, on_first() ? 0 : kExperts - 1);
    Bytes const given(mine.begin(), mine.end());
    auto const other = on_first() ? last : 0;
    auto const receiving = world().start_receive(mine, other);
    auto const sending = world().start_send(given, other);
    receiving->wait();
    sending->wait();
  }
  EXPECT_THAT(found(state), AllOf(says("0", "0", "down_proj", "(holds the values of expert 6)"),
                                  says(std::to_string(last), "6", "down_proj", "(holds the values of expert 0)")));
}

TEST_F(Mutations, AnExpertThatWasNotTransposedIsFoundByFull) {
  for (auto const& [fqn, tensor] : {std::pair(kDownFqn, "down_proj"), std::pair(kGateUpFqn, "gate_up_proj")}) {
    auto const state = loaded_but([fqn = fqn](StateDict& held) {
      undo_transpose(expert(held, fqn, 1), held.tensors.at(fqn).parameter.shape, 2);
    });
    EXPECT_THAT(found(state), AllOf(SizeIs(1), says("0", "1", tensor)));
  }
}

// What is square has the same shape either way round: nothing but the digest can tell.
TEST_F(Mutations, ASquareExpertThatWasNotTransposedIsFoundByFull) {
  auto shape = tiny_qwen35();
  shape.intermediate = shape.hidden;
  write_once("square", shape);
  auto state = load_from(source("square"));
  if (on_first()) undo_transpose(expert(state, kDownFqn, 0), state.tensors.at(kDownFqn).parameter.shape, 2);
  EXPECT_THAT(found(state), AllOf(SizeIs(1), says("0", "0", "down_proj")));
}

TEST_F(Mutations, GateAndUpThatChangedPlacesAreFoundByFull) {
  auto const state = loaded_but([](StateDict& held) {
    auto const columns = held.tensors.at(kGateUpFqn).parameter.columns();
    auto const matrix = expert(held, kGateUpFqn, 0);
    for (std::uint64_t row = 0; row < matrix.size(); row += columns * 2) {
      swap_bytes(matrix.subspan(row, columns), matrix.subspan(row + columns, columns));
    }
  });
  EXPECT_THAT(found(state), AllOf(SizeIs(1), says("0", "0", "gate_up_proj")));
}

TEST_F(Mutations, AnExpertThatWasLoadedTwiceIsFoundByFull) {
  auto const state = loaded_but(
      [](StateDict& held) { std::ranges::copy(expert(held, kDownFqn, 0), expert(held, kDownFqn, 1).begin()); });
  EXPECT_THAT(found(state), AllOf(SizeIs(1), says("0", "1", "down_proj", "(holds the values of expert 0)")));
}

/// Of a tensor with `count` experts in all only `part`.
void keep(ShardedTensor& tensor, Range part) {
  auto const one = tensor.data.bytes / tensor.local_shape[0];
  std::memmove(tensor.data.data.get(), tensor.data.data.get() + part.begin * one, part.size() * one);
  tensor.data.bytes = part.size() * one;
  tensor.local_shape[0] = part.size();
  tensor.offsets[0] = part.begin;
}

// As if every rank took E / ep experts.
TEST_F(Mutations, TheRemainderThatNoRankTookIsFoundByCoverageAndFull) {
  auto const ranks = static_cast<std::uint64_t>(world().size());
  if (kExperts % ranks == 0) GTEST_SKIP() << "needs a number of ranks that does not divide 7";
  auto state = load(source(), Mesh{}, MeshCoordinate{});
  state.mesh = mesh();
  state.coordinate = mesh().coordinate(world().rank());
  auto const each = kExperts / ranks;
  auto const first = each * static_cast<std::uint64_t>(world().rank());
  for (auto& [fqn, tensor] : state.tensors) {
    if (tensor.parameter.stacked_experts) keep(tensor, {first, first + each});
  }
  for (auto const level : {VerifyLevel::coverage, VerifyLevel::full}) {
    EXPECT_THAT(found(state, {.level = level}),
                Contains("expert 6 of " + std::string(kPrefix) + "down_proj: held by no rank"));
  }
}

// The other replica has everything, so that nothing is missing and no slice is cut otherwise: it would count as a copy.
TEST_F(Mutations, ExpertsOfAnotherCoordinateInOneReplicaAreFoundByCoverageAndFull) {
  if (world().size() != 4) GTEST_SKIP() << "needs 4 ranks for ep_replicate 2 × ep 2";
  auto const replicas = make_mesh(4, 2);
  auto const mine = replicas.coordinate(world().rank());
  auto held = mine;
  if (world().rank() == 2) held.ep = 1;
  auto state = load(source(), replicas, held);
  state.coordinate = mine;
  auto const has_none = "rank 2 (replica 1): expert 0 of " + std::string(kPrefix) + "down_proj: holds none, its mesh";
  auto const has_it = "rank 2 (replica 1): expert 6 of " + std::string(kPrefix) + "gate_up_proj: holds rows [0, ";
  for (auto const level : {VerifyLevel::coverage, VerifyLevel::full}) {
    EXPECT_THAT(found(state, {.level = level}), AllOf(Contains(HasSubstr(has_none)), Contains(HasSubstr(has_it))));
  }
  EXPECT_THROW(to_hf(state, path("misplaced"), world()), VerifyError);
}

TEST_F(Mutations, RowsOfAnotherRankThatSharesTheExpertAreFoundByFull) {
  if (world().size() % 2 != 0) GTEST_SKIP() << "needs ranks for ep_shard 2";
  auto const halves = make_mesh(world().size(), 0, 2);
  auto const mine = halves.coordinate(world().rank());
  auto const wrong = MeshCoordinate{.ep_replicate = 0, .ep_shard = 1 - mine.ep_shard, .ep = mine.ep};
  auto state = load(source(), halves, wrong);
  state.coordinate = mine;
  for (auto& [fqn, tensor] : state.tensors) {
    if (tensor.parameter.stacked_experts) {
      tensor.offsets[1] = static_cast<std::uint64_t>(mine.ep_shard) * tensor.local_shape[1];
    }
  }
  EXPECT_THAT(found(state, {.level = VerifyLevel::coverage}), IsEmpty());
  EXPECT_THAT(found(state),
              AllOf(says("0", "0", "down_proj"), says(world().size() == 2 ? "1" : "3", "6", "down_proj")));

  // Not if the coordinates of the read side came from the plan, or from what is held: such a proof proves nothing.
  state.read = digest_held(state, {}, &world());
  EXPECT_THAT(found(state), IsEmpty());
}

// Found only with a reference
// ------------------------------------------------------------------------------------------

/// Where an expert stands in the files.
struct Place {
  std::string path;
  Range bytes;
};

Place place_of(Checkpoint const& source, std::string const& fqn, std::uint64_t number) {
  for (auto const& piece : source.storage.pieces) {
    auto const& part = piece.slice.part;
    if (source.model.parameters[piece.parameter].fqn != fqn || number < part.begin || part.end <= number) continue;
    auto const one = piece.extent.bytes.size() / part.size();
    auto const begin = piece.extent.bytes.begin + (number - part.begin) * one;
    return {source.storage.files[piece.extent.file].path, {begin, begin + one}};
  }
  throw std::logic_error("no such expert");
}

/// What a read makes of a place: `got` is what stands there, `before` what the buffer had.
using Deceit = std::function<void(std::span<std::byte> got, std::span<std::byte const> before)>;

/// While it lives, what this process reads of a place is not what stands there.
class LyingReads {
 public:
  LyingReads(Place const& place, Deceit const& deceive) {
    lie() = [place, deceive](int fd, std::span<std::byte> out, ::off_t offset) {
      Bytes const before(out.begin(), out.end());
      auto const got = read_truly(fd, out, offset);
      auto const first = static_cast<std::uint64_t>(offset);
      auto const begin = std::max(first, place.bytes.begin) - first;
      auto const end = std::min(first + out.size(), place.bytes.end) - first;
      auto const file = std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(fd));
      if (begin < end && end <= out.size() && std::filesystem::equivalent(file, place.path)) {
        deceive(out.subspan(begin, end - begin), std::span(before).subspan(begin, end - begin));
      }
      return got;
    };
  }
  ~LyingReads() { lie() = nullptr; }
  LyingReads(LyingReads const&) = delete;
  LyingReads& operator=(LyingReads const&) = delete;
};

/// The system says that it has read, and the buffer keeps what it had.
void keep_what_was_there(std::span<std::byte> got, std::span<std::byte const> before) {
  std::ranges::copy(before, got.begin());
}

void change_a_bit(std::span<std::byte> got, std::span<std::byte const>) { got.back() ^= std::byte{1}; }

struct Fault {
  std::string name;
  Deceit deceit;
};

class MutationsOfReads : public Mutations, public testing::WithParamInterface<Fault> {
 protected:
  static void SetUpTestSuite() {
    Mutations::SetUpTestSuite();
    auto shape = tiny_qwen35();
    shape.experts = kExperts;
    shape.experts_form = ExpertForm::split;
    write_once("split", shape);
    save_store(load(source("split"), mesh(), world()), path("split.h5"), world());
  }
  /// Rank 0 is lied to about expert 0 while it loads.
  static StateDict load_deceived(std::shared_ptr<Checkpoint const> const& from) {
    std::optional<LyingReads> lies;
    if (on_first()) lies.emplace(place_of(*from, kDownFqn, 0), GetParam().deceit);
    return load_from(from);
  }
  static auto names_it() {
    return Contains(AllOf(HasSubstr("rank 0: layer 1, expert 0 of " + std::string(kPrefix)), HasSubstr("down_proj"),
                          HasSubstr(", read ")));
  }
};

TEST_P(MutationsOfReads, AreNotFoundWithoutAReference) {
  auto const state = load_deceived(source("split"));
  auto const report = verify(state, world());
  EXPECT_TRUE(report.ok());
  EXPECT_EQ(report.reference, "none");
}

// Of a dense tensor every rank has its own reading, and these are compared.
TEST_P(MutationsOfReads, OfADenseTensorAreFoundByTheReplicasOnOtherRanks) {
  if (world().size() == 1) GTEST_SKIP() << "needs two ranks";
  auto const from = source("split");
  std::optional<LyingReads> lies;
  if (on_first()) lies.emplace(place_of(*from, "lm_head.weight", 0), GetParam().deceit);
  auto const state = load_from(from);
  lies.reset();
  EXPECT_THAT(found(state), Contains(AllOf(HasSubstr("rank 1: lm_head.weight: "), HasSubstr("rank 0's digest "),
                                           HasSubstr("read here "))));
}

// Whoever reads it for all is lied to, and hands on what it got.
TEST_P(MutationsOfReads, OfADenseTensorThatIsReadOnceAreNotFoundByReplicasButByRereading) {
  auto const from = source("split");
  std::optional<LyingReads> lies(std::in_place, place_of(*from, "lm_head.weight", 0), GetParam().deceit);
  auto const state = load(from, mesh(), world(), {.dense = DenseReading::once});
  lies.reset();
  EXPECT_THAT(found(state), IsEmpty());
  EXPECT_THAT(found(state, {.level = VerifyLevel::reread}),
              Contains(AllOf(HasSubstr("lm_head.weight"), HasSubstr("read again by rank "))));
}

TEST_P(MutationsOfReads, AreFoundByRereadingWhichNamesWhoReadFirstAndWhoAgain) {
  auto const state = load_deceived(source("split"));
  auto const report = verify(state, world(), {.level = VerifyLevel::reread});
  EXPECT_EQ(report.reference, "reread");
  auto const what = found(state, {.level = VerifyLevel::reread});
  EXPECT_THAT(what, names_it());
  EXPECT_THAT(what, Each(AllOf(HasSubstr("rank 0: "),
                               HasSubstr("read again by rank " + std::to_string(1 % world().size()) + " digest"))));
}

TEST_P(MutationsOfReads, AreFoundByAManifest) {
  auto known = std::make_shared<Checkpoint>(*source("split"));
  known->digests = digest(*known, world());
  known->digests_from = "manifest";
  auto const state = load_deceived(known);
  EXPECT_EQ(verify(state, world()).reference, "manifest");
  EXPECT_THAT(found(state), names_it());
}

TEST_P(MutationsOfReads, AreFoundByWhatAStoreRecorded) {
  auto const state = load_deceived(source("split.h5"));
  EXPECT_EQ(verify(state, world()).reference, "store");
  EXPECT_THAT(found(state), names_it());
}

TEST_P(MutationsOfReads, AreFoundByComparingWithOtherFiles) {
  auto const state = load_deceived(source("split"));
  auto const other = source("split.h5");
  EXPECT_EQ(verify(state, world(), {.against = other.get()}).reference, "against");
  EXPECT_THAT(found(state, {.against = other.get()}), names_it());
}

INSTANTIATE_TEST_SUITE_P(, MutationsOfReads,
                         testing::Values(Fault{"StaleStagingBuffer", keep_what_was_there},
                                         Fault{"LyingRead", change_a_bit}),
                         [](auto const& tested) { return tested.param.name; });

class MutationsOfThePlan : public MutationsOfReads {
 protected:
  /// Experts 0 and 1 point at one another's bytes.
  static std::shared_ptr<Checkpoint const> with_wrong_extents() {
    auto wrong = std::make_shared<Checkpoint>(*source("split"));
    auto& pieces = wrong->storage.pieces;
    auto const piece_of = [&](std::uint64_t number) {
      return std::ranges::find_if(pieces, [&](StoredPiece const& piece) {
        return wrong->model.parameters[piece.parameter].fqn == kDownFqn && piece.slice.part.begin == number;
      });
    };
    std::swap(piece_of(0)->extent, piece_of(1)->extent);
    return wrong;
  }
};

TEST_F(MutationsOfThePlan, AWrongExtentIsNotFoundWithoutAReference) {
  EXPECT_THAT(found(load_from(with_wrong_extents())), IsEmpty());
}

TEST_F(MutationsOfThePlan, AWrongExtentIsFoundByAReferenceThatNamesWhoseValuesTheyAre) {
  auto const right = source("split");
  EXPECT_THAT(found(load_from(with_wrong_extents()), {.against = right.get()}),
              Contains(AllOf(HasSubstr("layer 1, expert 0 of "), HasSubstr("against digest "),
                             HasSubstr("(holds the values of expert 1)"))));
}

TEST_F(MutationsOfThePlan, AWrongExtentOfOneRankIsFoundByRereading) {
  if (world().size() == 1) GTEST_SKIP() << "needs a rank that knows better";
  auto const state = load_from(on_first() ? with_wrong_extents() : source("split"));
  EXPECT_THAT(found(state, {.level = VerifyLevel::reread}), names_it());
}

// Whoever reads the same wrong bytes again finds them the same.
TEST_F(MutationsOfThePlan, AWrongExtentOfAllRanksIsNotFoundByRereading) {
  EXPECT_THAT(found(load_from(with_wrong_extents()), {.level = VerifyLevel::reread}), IsEmpty());
}

}  // namespace
}  // namespace rankslice::test

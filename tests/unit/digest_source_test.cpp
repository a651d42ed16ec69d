// States that nothing was digested for while their values came into memory.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <numeric>
#include <vector>

#include "rankslice/load.hpp"
#include "rankslice/make_state_dict.hpp"
#include "rankslice/verify.hpp"

#include "io/memory.hpp"
#include "support/fp8_checkpoint.hpp"
#include "support/naive_digest.hpp"
#include "support/raw_checkpoint.hpp"
#include "support/temp_dir.hpp"
#include "support/thread_world.hpp"

namespace rankslice {
namespace {

using testing::ElementsAreArray;

constexpr auto kDense = "model.language_model.embed_tokens.weight";

std::vector<std::uint64_t> numbers(DigestTable const& table) { return {table.values().begin(), table.values().end()}; }

class DigestSource : public testing::Test {
 protected:
  [[nodiscard]] std::string small() const {
    auto const folder = dir_.file("small");
    if (!std::filesystem::exists(folder)) test::write_small_checkpoint(folder);
    return folder;
  }
  [[nodiscard]] std::string fp8() const {
    auto const folder = dir_.file("fp8");
    if (!std::filesystem::exists(folder)) test::write_fp8_checkpoint(folder);
    return folder;
  }

  /// What one rank of several holds, without a word on what was read for it.
  [[nodiscard]] static StateDict undigested(std::shared_ptr<Checkpoint const> const& source, Mesh const& mesh,
                                            int rank) {
    return load(source, mesh, mesh.coordinate(rank), {.verify = VerifyLevel::coverage});
  }

  test::TempDir dir_;
};

TEST_F(DigestSource, IsOfTheSameBytesAsLoadingOnEveryRankOfEveryMesh) {
  auto const sources = {open_checkpoint(small()), open_checkpoint(small(), {.dtype = DType::F32}),
                        open_checkpoint(fp8())};
  for (auto const& source : sources) {
    for (auto const& mesh : {make_mesh(1), make_mesh(3), make_mesh(4, 2, 2), make_mesh(4, 2)}) {
      for (int rank = 0; rank < mesh.ranks(); ++rank) {
        SCOPED_TRACE(testing::Message() << source->path << ", rank " << rank << " of " << mesh.ranks());
        auto const loaded = load(source, mesh, mesh.coordinate(rank));
        auto state = undigested(source, mesh, rank);
        digest_source(state);
        EXPECT_THAT(numbers(state.read.source), ElementsAreArray(numbers(loaded.read.source)));
        EXPECT_THAT(numbers(state.read.stored), ElementsAreArray(numbers(loaded.read.stored)));
        EXPECT_EQ(state.read.without_codes, loaded.read.without_codes);
        EXPECT_TRUE(verify(state).ok());
      }
    }
  }
}

TEST_F(DigestSource, IsThatOfTheFilesAndNotOfTheMemory) {
  auto const mesh = make_mesh(1);
  auto const source = open_checkpoint(small());
  auto state = undigested(source, mesh, 0);
  auto const& memory = state.tensors.at(kDense).data;
  std::fill_n(memory.data.get(), memory.bytes, std::byte{0x3F});
  digest_source(state);
  auto const raw = test::read_raw_tensors(small());
  for (std::size_t i = 0; i < source->model.tensors.size(); ++i) {
    auto const& tensor = source->model.tensors[i];
    auto const& key = tensor.key;
    auto const width = tensor.dtype == DType::F32 ? 4U : 2U;
    auto const expected = test::naive_digest(width, tensor.shape, raw.at(key).bytes);
    auto const found = state.read.source.of(i);
    if (tensor.shape.size() < 3) {
      ASSERT_EQ(found.size(), 1U) << key;
      EXPECT_EQ(found[0], std::accumulate(expected.begin(), expected.end(), std::uint64_t{0})) << key;
    } else {
      EXPECT_THAT(std::vector(found.begin(), found.end()), ElementsAreArray(expected)) << key;
    }
  }
  EXPECT_EQ(std::to_integer<int>(memory.data.get()[0]), 0x3F);
  auto const report = verify(state);
  ASSERT_EQ(report.mismatches.size(), 1U);
  EXPECT_EQ(report.mismatches[0].tensor, kDense);
}

TEST_F(DigestSource, OfADividedDenseTensorCountsOnlyThePartThatIsHeld) {
  auto const mesh = make_mesh(1);
  auto state = undigested(open_checkpoint(small()), mesh, 0);
  auto& tensor = state.tensors.at(kDense);
  auto const columns = tensor.parameter.shape[1];
  Range const rows{1, 3};
  tensor.offsets = {rows.begin, 0};
  tensor.local_shape = {rows.size(), columns};
  tensor.data.data = {tensor.data.data, tensor.data.data.get() + rows.begin * columns * 2};
  tensor.data.bytes = rows.size() * columns * 2;
  digest_source(state);
  auto const raw = test::read_raw_tensors(small()).at(kDense);
  auto const expected = test::naive_digest(2, raw.shape, raw.bytes, {rows.begin * columns, rows.end * columns});
  EXPECT_EQ(state.read.source.sum(tensor.parameter.tensors[0]), expected[0]);
  EXPECT_TRUE(verify(state).ok());
}

TEST_F(DigestSource, IsTakenOnlyByTheRanksThatHaveNone) {
  auto const source = open_checkpoint(small());
  auto const mesh = make_mesh(3);
  test::run_ranks(3, [&](Communicator& world) {
    auto state = load(source, mesh, mesh.coordinate(world.rank()));
    auto const loaded = numbers(state.read.source);
    if (world.rank() == 1) state.read = {};
    if (world.rank() == 0) ++state.read.source.values()[0];  // what was loaded is not what the files have now
    digest_source(state, world);
    if (world.rank() == 0) --state.read.source.values()[0];
    EXPECT_THAT(numbers(state.read.source), ElementsAreArray(loaded));
    EXPECT_TRUE(verify(state, world).ok());
  });
}

TEST_F(DigestSource, ReadsNothingWhereEveryRankHasOne) {
  auto const source = open_checkpoint(small());
  auto const mesh = make_mesh(2);
  std::vector<StateDict> states;
  for (int rank = 0; rank < 2; ++rank) states.push_back(load(source, mesh, mesh.coordinate(rank)));
  std::filesystem::remove_all(small());
  test::run_ranks(2, [&](Communicator& world) {
    auto& state = states[static_cast<std::size_t>(world.rank())];
    digest_source(state, world);
    EXPECT_TRUE(verify(state, world).ok());
  });
}

TEST_F(DigestSource, OfAFileThatWasCutShortFailsOnEveryRank) {
  auto const source = open_checkpoint(small());
  auto const mesh = make_mesh(2);
  std::vector<StateDict> states;
  for (int rank = 0; rank < 2; ++rank) states.push_back(undigested(source, mesh, rank));
  for (auto const& file : source->hf.files) std::filesystem::resize_file(small() + "/" + file.name, file.size - 1);
  auto const thrown = test::exceptions_of_ranks(
      2, [&](Communicator& world) { digest_source(states[static_cast<std::size_t>(world.rank())], world); });
  for (auto const& error : thrown) EXPECT_THROW(std::rethrow_exception(error), FormatError);
}

TEST_F(DigestSource, OfAStateWithoutACheckpointIsRefused) {
  LocalTensor const norm{.dtype = DType::BF16, .global_shape = {4}, .data = allocate_host(8)};
  auto const mesh = make_mesh(1);
  auto state = make_state_dict({{"model.norm.weight", norm}}, mesh, mesh.coordinate(0),
                               {.family = "qwen3_moe", .partial = true});
  EXPECT_THROW(digest_source(state), UsageError);
}

}  // namespace
}  // namespace rankslice

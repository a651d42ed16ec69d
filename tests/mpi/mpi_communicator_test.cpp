#include <gtest/gtest.h>
#include <mpi.h>

#include <chrono>
#include <memory>
#include <stdexcept>
#include <thread>
#include <tuple>
#include <vector>

#include "rankslice/mpi.hpp"

#include "core/literals.hpp"
#include "support/communicator_conformance.hpp"
#include "support/large_message.hpp"

namespace {
int communicators_freed = 0;
}  // namespace

/// Instead of MPI's, whose profiling interface provides for that.
int MPI_Comm_free(MPI_Comm* comm) {
  ++communicators_freed;
  return PMPI_Comm_free(comm);
}

namespace rankslice {
namespace {

using namespace std::chrono_literals;

std::unique_ptr<Communicator> world() { return make_mpi_communicator(MPI_COMM_WORLD, {.timeout = 30s}); }

std::unique_ptr<Communicator> odd_and_even() {
  auto const all = world();  // and gone before its parts are used
  return all->split(all->rank() % 2);
}

std::unique_ptr<Communicator> part_of_a_part() {
  auto const all = world();
  return all->split(all->rank() == 0 ? 1 : 0)->split(5);
}

INSTANTIATE_TEST_SUITE_P(Mpi, CommunicatorConformance,
                         testing::Values(one_rank_of("World", world), one_rank_of("OddAndEven", odd_and_even),
                                         one_rank_of("PartOfAPart", part_of_a_part)),
                         [](auto const& suite) { return suite.param.name; });

TEST(MpiCommunicator, TakesItsRankAndSizeFromTheCallersCommunicator) {
  int rank = 0;
  int size = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  auto const comm = world();
  EXPECT_EQ(comm->rank(), rank);
  EXPECT_EQ(comm->size(), size);
  EXPECT_EQ(comm->kind(), "mpi");
}

TEST(MpiCommunicator, LeavesTheCallersMessagesAlone) {
  auto const comm = world();
  auto const next = (comm->rank() + 1) % comm->size();
  int const sent = comm->rank();
  MPI_Request request = MPI_REQUEST_NULL;
  MPI_Isend(&sent, 1, MPI_INT, next, 1, MPI_COMM_WORLD, &request);
  std::ignore = comm->agree({});
  int received = -1;
  MPI_Recv(&received, 1, MPI_INT, MPI_ANY_SOURCE, MPI_ANY_TAG, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  MPI_Wait(&request, MPI_STATUS_IGNORE);
  EXPECT_EQ(received, (comm->rank() + comm->size() - 1) % comm->size());
}

TEST(MpiCommunicator, RefusesATimeoutThatIsNotPositive) {
  EXPECT_THROW(make_mpi_communicator(MPI_COMM_WORLD, {.timeout = 0ms}), UsageError);
  EXPECT_THROW(make_mpi_communicator(MPI_COMM_WORLD, {.timeout = -1s}), UsageError);
}

TEST(MpiCommunicator, RefusesANegativeColourOnEveryRank) {
  auto const comm = world();
  EXPECT_THROW(std::ignore = comm->split(comm->rank() == 0 ? -1 : 0), UsageError);
}

TEST(MpiCommunicator, ReducesMoreThanOnePiece) {
  auto const comm = world();
  if (comm->size() != 2) GTEST_SKIP() << "once is enough: with 2 ranks";
  std::vector<std::uint64_t> values(64_MiB / sizeof(std::uint64_t) + 5);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = comm->rank() == 0 ? i : 2 * i;
  comm->all_reduce(values, Reduce::sum);
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < values.size(); ++i) wrong += values[i] != 3 * i ? 1U : 0U;
  EXPECT_EQ(wrong, 0U);
}

TEST(MpiCommunicator, BroadcastsAndGathersMoreThanOnePiece) {
  auto const comm = world();
  if (comm->size() != 2) GTEST_SKIP() << "once is enough: with 2 ranks";
  auto bytes = bytes_of_rank(comm->rank(), 64_MiB + 3);
  auto const expected = bytes_of_rank(1, 64_MiB + 3);
  auto const everyone = comm->gather(bytes, 0);
  EXPECT_TRUE(comm->rank() == 1 || everyone.at(1) == expected);
  comm->broadcast(bytes, 1);
  EXPECT_TRUE(bytes == expected);
}

TEST(MpiCommunicator, SendsMoreThanTwoGiB) {
  auto const comm = world();
  if (comm->size() != 2) GTEST_SKIP() << "once is enough: with 2 ranks";
  test::expect_a_message_over_2_gib_arrives(*comm);
}

TEST(MpiCommunicator, LivesOnWhileARankComputesOutsideOfSteps) {
  // Three deadlines of the watchdog's patience would end this rank if it were watched here.
  auto const comm = make_mpi_communicator(MPI_COMM_WORLD, {.timeout = 300ms});
  on_every_rank(*comm, [] {});
  std::this_thread::sleep_for(3s);
  EXPECT_EQ(comm->agree({}).code, ExitCode::done);
}

TEST(MpiCommunicator, UnwindsTogetherAfterAnAgreedFailure) {
  EXPECT_THROW(
      {
        auto const comm = world();
        on_every_rank(*comm, [&] {
          if (comm->rank() == 0) throw std::runtime_error("x");
        });
      },
      UnexpectedError);
  EXPECT_EQ(world()->agree({}).code, ExitCode::done);
}

TEST(MpiCommunicator, UnwindsTogetherWithItsPartsAfterAnAgreedFailure) {
  auto const before = communicators_freed;
  EXPECT_THROW(
      {
        auto const comm = world();
        auto const part = comm->split(0);
        auto const half = part->split(comm->rank() % 2);
        on_every_rank(*comm, [&] {
          if (comm->rank() == 0) throw std::runtime_error("x");
        });
      },
      UnexpectedError);
  EXPECT_EQ(communicators_freed, before + 3);
}

TEST(MpiCommunicator, DoesNotWaitForTheOthersWhenOneUnwindsAlone) {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  int reached = 0;
  try {
    auto const comm = world();
    if (rank == 0) throw std::runtime_error("not agreed");
    MPI_Recv(&reached, 1, MPI_INT, 0, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);  // only after rank 0 is out
    throw std::runtime_error("the others too");
  } catch (std::runtime_error const&) {
  }
  if (rank != 0) return;
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  reached = 1;
  for (int to = 1; to < size; ++to) MPI_Send(&reached, 1, MPI_INT, to, 0, MPI_COMM_WORLD);
}

}  // namespace
}  // namespace rankslice

// main() of the tests that run under mpirun. Rank 0 alone reports passes; a failure is reported where it happens, and
// ends all ranks at once: the others may wait for this one in a collective call.

#include <gtest/gtest.h>
#include <mpi.h>

#include <cstdio>
#include <cstdlib>

namespace {

constexpr int kSkippedExitCode = 77;  // SKIP_RETURN_CODE of add_mpi_test; ctest shows a bare GTEST_SKIP as passed

class AbortOnFailure final : public testing::EmptyTestEventListener {
  void OnTestEnd(testing::TestInfo const& test) override {
    if (!test.result()->Failed()) return;
    std::fflush(nullptr);
    MPI_Abort(MPI_COMM_WORLD, EXIT_FAILURE);
  }
};

class PrintFailures final : public testing::EmptyTestEventListener {
 public:
  explicit PrintFailures(int rank) : rank_(rank) {}

 private:
  void OnTestPartResult(testing::TestPartResult const& part) override {
    if (!part.failed()) return;
    auto const* const file = part.file_name() == nullptr ? "unknown file" : part.file_name();
    std::fprintf(stderr, "rank %d: %s:%d: Failure\n%s\n", rank_, file, part.line_number(), part.message());
  }

  int rank_;
};

bool skipped_everything() {
  auto const& tests = *testing::UnitTest::GetInstance();
  return tests.test_to_run_count() > 0 && tests.skipped_test_count() == tests.test_to_run_count();
}

}  // namespace

int main(int argc, char** argv) {
  int thread_level = MPI_THREAD_SINGLE;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &thread_level);
  testing::InitGoogleTest(&argc, argv);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);

  auto& listeners = testing::UnitTest::GetInstance()->listeners();
  if (rank != 0) {
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new PrintFailures(rank));
  }
  listeners.Append(new AbortOnFailure);

  int result = RUN_ALL_TESTS();
  if (result == EXIT_SUCCESS && skipped_everything()) result = kSkippedExitCode;
  MPI_Allreduce(MPI_IN_PLACE, &result, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  MPI_Finalize();
  return result;
}

#include "rankslice/communicator.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <new>
#include <stdexcept>
#include <string>
#include <typeinfo>
#include <vector>

#include "support/communicator_conformance.hpp"

namespace rankslice {
namespace {

/// One rank's view of a world in which rank 5 failed: `agree` answers what the test prepared.
class WorldWithAgreement final : public Communicator {
 public:
  explicit WorldWithAgreement(Outcome agreed) : agreed_(std::move(agreed)) {}

  [[nodiscard]] int rank() const override { return 2; }
  [[nodiscard]] int size() const override { return 8; }
  [[nodiscard]] std::string_view kind() const override { return "test"; }
  void all_reduce(std::span<std::uint64_t> /*values*/, Reduce /*op*/) override {}
  void broadcast(std::span<std::byte> /*bytes*/, int /*root*/) override {}
  [[nodiscard]] std::vector<std::vector<std::byte>> gather(std::span<std::byte const> /*bytes*/,
                                                           int /*root*/) override {
    return {};
  }
  [[nodiscard]] std::string const& host(int /*rank*/) const override { return host_; }
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_send(std::span<std::byte const> /*bytes*/, int /*to*/) override {
    return nullptr;
  }
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_receive(std::span<std::byte> /*bytes*/, int /*from*/) override {
    return nullptr;
  }
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_broadcast(std::span<std::byte> /*bytes*/,
                                                                 int /*root*/) override {
    return nullptr;
  }
  [[nodiscard]] std::unique_ptr<Communicator> split(int /*color*/) override { return nullptr; }
  void begin_step() override { calls.emplace_back("begin_step"); }
  [[nodiscard]] Outcome agree(Outcome const& mine) override {
    calls.emplace_back("agree");
    told = mine;
    return agreed_;
  }
  void progress() override {}
  void wait_until(std::function<bool()> const& /*done*/) override {}
  [[noreturn]] void abort(ExitCode code, std::string const& message) override { throw CommError(code, message); }

  std::vector<std::string> calls;
  Outcome told;

 private:
  Outcome agreed_;
  std::string host_ = "h";
};

INSTANTIATE_TEST_SUITE_P(Solo, CommunicatorConformance, testing::Values(one_rank_of("OneRank", make_solo_communicator)),
                         [](auto const& suite) { return suite.param.name; });

template <typename SomeError>
SomeError thrown_by(Communicator& world, std::function<void()> const& step) {
  try {
    on_every_rank(world, step);
  } catch (SomeError const& error) {
    EXPECT_TRUE(typeid(error) == typeid(SomeError)) << "thrown as " << typeid(error).name();
    return error;
  }
  throw std::logic_error("on_every_rank did not throw");
}

TEST(OnEveryRank, BeginsTheStepBeforeItRunsAndAgreesAfterwards) {
  WorldWithAgreement world({});
  on_every_rank(world, [&] { world.calls.emplace_back("step"); });
  EXPECT_THAT(world.calls, testing::ElementsAre("begin_step", "step", "agree"));
  EXPECT_EQ(world.told.code, ExitCode::done);
}

TEST(OnEveryRank, ThrowsAnotherRanksFailureWhereNothingFailedHere) {
  WorldWithAgreement world({ExitCode::bad_data, 5, "x.safetensors: header ends at byte 7", "x.safetensors", "lm_head"});
  auto const error = thrown_by<FormatError>(world, [] {});
  EXPECT_STREQ(error.what(), "x.safetensors: header ends at byte 7");
  EXPECT_EQ(error.file, "x.safetensors");
  EXPECT_EQ(error.tensor, "lm_head");
  EXPECT_EQ(error.rank, 5);
}

TEST(OnEveryRank, ThrowsTheAgreedFailureAndNotItsOwn) {
  WorldWithAgreement world({ExitCode::io, 0, "read failed", "a", ""});
  auto const error = thrown_by<IoError>(world, [] { throw FormatError("not this one"); });
  EXPECT_STREQ(error.what(), "read failed");
  EXPECT_EQ(error.rank, 0);
  EXPECT_EQ(world.told.code, ExitCode::bad_data);
  EXPECT_EQ(world.told.message, "not this one");
}

template <typename SomeError>
void expect_type_for(ExitCode code) {
  WorldWithAgreement world({code, 5, "why", "file", "tensor"});
  auto const error = thrown_by<SomeError>(world, [] {});
  EXPECT_EQ(error.code, code);
  EXPECT_EQ(error.rank, 5);
}

TEST(OnEveryRank, GivesEachExitCodeItsExceptionType) {
  expect_type_for<UnexpectedError>(ExitCode{1});
  expect_type_for<UsageError>(ExitCode{2});
  expect_type_for<VerifyError>(ExitCode{3});
  expect_type_for<FormatError>(ExitCode{65});
  expect_type_for<IoError>(ExitCode{66});
  expect_type_for<DeviceError>(ExitCode{69});
  expect_type_for<IoError>(ExitCode{73});
  expect_type_for<IoError>(ExitCode{74});
  expect_type_for<CommError>(ExitCode{75});
  expect_type_for<CommError>(ExitCode{78});
  expect_type_for<Interrupted>(ExitCode{130});
  expect_type_for<Interrupted>(ExitCode{143});
}

TEST(OnEveryRank, ThrowsUnexpectedErrorForACodeThatNobodyKnows) {
  WorldWithAgreement world({ExitCode{42}, 5, "from the future", "", ""});
  auto const error = thrown_by<UnexpectedError>(world, [] {});
  EXPECT_EQ(error.code, ExitCode::unexpected);
}

TEST(OnEveryRank, KeepsMessageFileAndTensorInAOneRankWorld) {
  auto world = make_solo_communicator();
  auto const error =
      thrown_by<VerifyError>(*world, [] { throw VerifyError("layer 3, expert 7 differs", "f.h5", "experts.down"); });
  EXPECT_STREQ(error.what(), "layer 3, expert 7 differs");
  EXPECT_EQ(error.file, "f.h5");
  EXPECT_EQ(error.tensor, "experts.down");
  EXPECT_EQ(error.rank, 0);
}

TEST(OnEveryRank, KeepsTheTensorOfAPlanError) {
  auto world = make_solo_communicator();
  auto const error = thrown_by<UsageError>(*world, [] { throw PlanError("no such tensor", "lm_head"); });
  EXPECT_EQ(error.tensor, "lm_head");
}

TEST(OnEveryRank, ReportsForeignExceptionsAsUnexpected) {
  auto world = make_solo_communicator();
  auto const foreign = thrown_by<UnexpectedError>(*world, [] { throw std::out_of_range("index 9 of 4"); });
  EXPECT_STREQ(foreign.what(), "unexpected: index 9 of 4");
  auto const memory = thrown_by<UnexpectedError>(*world, [] { throw std::bad_alloc(); });
  EXPECT_THAT(memory.what(), testing::HasSubstr("out of memory"));
  auto const unknown = thrown_by<UnexpectedError>(*world, [] { throw 42; });
  EXPECT_THAT(unknown.what(), testing::HasSubstr("unknown type"));
}

}  // namespace
}  // namespace rankslice

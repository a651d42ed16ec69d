// What ranks hold, brought together: to one rank, to the first of each host, to all, and into files that one rank
// writes.

#include "rankslice/gather.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <stdexcept>

#include "rankslice/load.hpp"
#include "rankslice/make_state_dict.hpp"

#include "support/caller_tensors.hpp"
#include "support/forwarding_communicator.hpp"
#include "support/job_fixture.hpp"
#include "support/late_device.hpp"
#include "support/raw_checkpoint.hpp"
#include "synth/synth.hpp"

namespace rankslice::test {
namespace {

using testing::HasSubstr;

/// Puts blocks together again, and expects them in order.
class Assembled {
 public:
  [[nodiscard]] HfBlockStep step() {
    return [this](HfBlock const& block) { add(block); };
  }
  [[nodiscard]] std::map<std::string, RawTensor> const& tensors() const { return tensors_; }

 private:
  void add(HfBlock const& block) {
    auto const& tensor = block.tensor;
    if (current_.empty()) {
      EXPECT_FALSE(tensors_.contains(tensor.key)) << tensor.key << " comes twice";
      current_ = tensor.key;
      auto& begun = tensors_[current_];
      begun.dtype = name(tensor.dtype);
      begun.shape = tensor.shape;
    }
    EXPECT_EQ(tensor.key, current_);
    auto& bytes = tensors_[current_].bytes;
    EXPECT_EQ(block.bytes.begin, bytes.size());
    EXPECT_EQ(block.bytes.size(), block.data.size());
    bytes.insert(bytes.end(), block.data.begin(), block.data.end());
    EXPECT_EQ(block.last, bytes.size() == byte_size(tensor.dtype, tensor.shape));
    if (block.last) current_.clear();
  }

  std::map<std::string, RawTensor> tensors_;
  std::string current_;
};

void expect_equal_tensors(std::map<std::string, RawTensor> const& expected,
                          std::map<std::string, RawTensor> const& found) {
  ASSERT_EQ(found.size(), expected.size());
  for (auto const& [key, tensor] : expected) {
    ASSERT_TRUE(found.contains(key)) << key;
    EXPECT_EQ(found.at(key).dtype, tensor.dtype) << key;
    EXPECT_EQ(found.at(key).shape, tensor.shape) << key;
    EXPECT_TRUE(found.at(key).bytes == tensor.bytes) << key << " differs";
  }
}

/// Says that two ranks each share a host, counts what travels, and changes a bit of it where it is told to.
class WatchedCommunicator final : public ForwardingCommunicator {
 public:
  struct Seen {
    std::uint64_t sent = 0, received = 0;
    std::uint64_t flip_in_receive = 0;  // of this number, from 1 on, of those with bytes; 0: none
    std::uint64_t receives = 0;
  };

  WatchedCommunicator(Communicator& next, Seen& seen) : ForwardingCommunicator(next), seen_(seen) {
    for (int rank = 0; rank < size(); ++rank) hosts_.push_back(fmt::format("host{}", rank / 2));
  }
  WatchedCommunicator(std::unique_ptr<Communicator> next, Seen& seen) : WatchedCommunicator(*next, seen) {
    owned_ = std::move(next);
  }

  [[nodiscard]] std::string const& host(int rank) const override { return hosts_[static_cast<std::size_t>(rank)]; }
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_send(std::span<std::byte const> bytes, int to) override {
    seen_.sent += bytes.size();
    return ForwardingCommunicator::start_send(bytes, to);
  }
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_receive(std::span<std::byte> bytes, int from) override {
    return damaged(ForwardingCommunicator::start_receive(bytes, from), bytes);
  }
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_broadcast(std::span<std::byte> bytes, int root) override {
    auto pending = ForwardingCommunicator::start_broadcast(bytes, root);
    if (root != rank()) return damaged(std::move(pending), bytes);
    seen_.sent += bytes.size();
    return pending;
  }
  [[nodiscard]] std::unique_ptr<Communicator> split(int color) override {
    return std::make_unique<WatchedCommunicator>(ForwardingCommunicator::split(color), seen_);
  }

 private:
  class Damaged final : public PendingTransfer {
   public:
    Damaged(std::unique_ptr<PendingTransfer> pending, std::byte& victim)
        : pending_(std::move(pending)), victim_(victim) {}
    void wait() override {
      pending_->wait();
      if (!std::exchange(done_, true)) victim_ ^= std::byte{0x10};
    }

   private:
    std::unique_ptr<PendingTransfer> pending_;
    std::byte& victim_;
    bool done_ = false;
  };

  std::unique_ptr<PendingTransfer> damaged(std::unique_ptr<PendingTransfer> pending, std::span<std::byte> bytes) {
    seen_.received += bytes.size();
    if (bytes.empty() || ++seen_.receives != seen_.flip_in_receive) return pending;
    return std::make_unique<Damaged>(std::move(pending), bytes[bytes.size() / 2]);
  }

  Seen& seen_;
  std::unique_ptr<Communicator> owned_;
  std::vector<std::string> hosts_;
};

bool is_receiver(Communicator const& world, GatherOptions const& options) {
  switch (options.receivers) {
    case Receivers::one_rank:
      return world.rank() == options.rank;
    case Receivers::first_ranks_of_hosts:
      return world.rank() % 2 == 0;  // of WatchedCommunicator
    case Receivers::all_ranks:
      return true;
  }
  return false;
}

/// The meshes of as many ranks as there are.
std::vector<Mesh> meshes_of(int ranks) {
  std::vector<Mesh> meshes;
  for (int shards = 1; shards <= ranks; ++shards) {
    for (int ep = 1; ep <= ranks; ++ep) {
      auto const replicas = ranks / (ep * shards);
      if (replicas * ep * shards == ranks && shards != 3) meshes.push_back({replicas, shards, ep});
    }
  }
  return meshes;
}

class GatherTest : public JobTest {
 protected:
  static StateDict load_all(std::string const& folder = checkpoint(), std::optional<Mesh> mesh = {},
                            OpenOptions const& open = {}) {
    return load(open_checkpoint(folder, world(), open), mesh.value_or(make_mesh(world().size())), world());
  }

  /// To each kind of receivers: they get these tensors, and the others nothing.
  static void expect_gathered(StateDict const& state, std::map<std::string, RawTensor> const& expected,
                              GatherOptions options = {}) {
    WatchedCommunicator::Seen seen;
    WatchedCommunicator watched(world(), seen);
    for (auto const receivers : {Receivers::one_rank, Receivers::first_ranks_of_hosts, Receivers::all_ranks}) {
      SCOPED_TRACE(testing::Message() << "receivers " << static_cast<int>(receivers));
      options.receivers = receivers;
      options.rank = world().size() - 1;
      seen = {};
      Assembled assembled;
      auto const report = gather(state, watched, options, assembled.step());
      expect_equal_tensors(is_receiver(world(), options) ? expected : std::map<std::string, RawTensor>(),
                           assembled.tensors());
      EXPECT_EQ(report.tensors, assembled.tensors().size());
      EXPECT_EQ(report.bytes_sent, seen.sent);
      EXPECT_EQ(report.bytes_received, seen.received);
    }
  }

  static void synthesize_once(std::string const& folder, SynthOptions const& options) {
    on_every_rank(world(), [&] {
      if (world().rank() == 0) synthesize(folder, options);
    });
  }

  static void expect_equal_folders(std::string const& expected, std::string const& found) {
    if (world().rank() != 0) return;
    EXPECT_TRUE(files_below(expected) == files_below(found)) << found;
  }

  /// Every rank ends with an error of this type and these words.
  template <typename Expected>
  static void expect_all_fail(std::function<void()> const& call, std::string const& words, int rank = -1) {
    try {
      call();
      ADD_FAILURE() << "no error";
    } catch (Expected const& error) {
      EXPECT_THAT(error.what(), HasSubstr(words));
      EXPECT_TRUE(rank < 0 || error.rank == rank) << error.rank;
    }
    barrier(world());
  }
};

TEST_F(GatherTest, HandsOutTheTensorsOfTheCheckpointFromEveryMesh) {
  for (auto const& mesh : meshes_of(world().size())) {
    SCOPED_TRACE(testing::Message() << mesh.ep_replicate << " x " << mesh.ep_shard << " x " << mesh.ep);
    expect_gathered(load_all(checkpoint(), mesh), read_raw_tensors(checkpoint()));
  }
}

TEST_F(GatherTest, HandsOutWhatAnExportWritesOfEveryFamily) {
  for (auto const* family : {"qwen3_vl_moe", "qwen3_moe", "qwen3_next"}) {
    for (auto const quantization : {SynthQuantization::none, SynthQuantization::fp8}) {
      auto const folder = path(fmt::format("{}-{}", family, static_cast<int>(quantization)));
      SCOPED_TRACE(folder);
      synthesize_once(folder, {.family = family, .layers = 2, .experts = 5, .quantization = quantization});
      auto const state = load_all(folder);
      to_hf(state, folder + "-out", world());
      expect_gathered(state, read_raw_tensors(folder + "-out"));
      to_hf(state, folder + "-gathered", world(), {.gather = true});
      expect_equal_folders(folder + "-out", folder + "-gathered");
      to_hf(*state.source, folder + "-streamed", world(), {.gather = true});
      expect_equal_folders(folder + "-out", folder + "-streamed");
    }
  }
}

TEST_F(GatherTest, HandsOutInTheDtypesThatAnExportHas) {
  auto const state = load_all(checkpoint(), {}, {.dtype = DType::F32});
  ExportOptions options{.gdn_dtype = GdnDtype::upstream};
  to_hf(state, path("upstream"), world(), options);
  expect_gathered(state, read_raw_tensors(path("upstream")), {.gdn_dtype = GdnDtype::upstream});
  expect_gathered(state, read_raw_tensors(checkpoint()), {.layout = ExportLayout::source});
}

TEST_F(GatherTest, HandsOutOnlySelectedTensors) {
  auto expected = read_raw_tensors(checkpoint());
  std::erase_if(expected, [](auto const& tensor) { return tensor.first.find("layers.1.") == std::string::npos; });
  ASSERT_FALSE(expected.empty());
  auto const keys = key_selection(".*layers[.]1[.]");
  expect_gathered(load_all(), expected, {.keys = keys});
  auto const source = open_checkpoint(checkpoint(), world());
  expect_gathered(load(source, make_mesh(world().size()), world(), {.keys = keys}), expected);
}

TEST_F(GatherTest, HandsOutStatesThatWereNotLoaded) {
  auto const mesh = make_mesh(world().size());
  auto const state =
      make_state_dict(doubled_as_f32(load_all()), mesh, mesh.coordinate(world().rank()), {.family = "qwen3_5_moe"});
  to_hf(state, path("made"), world());
  expect_gathered(state, read_raw_tensors(path("made")));
  to_hf(state, path("made-gathered"), world(), {.gather = true});
  expect_equal_folders(path("made"), path("made-gathered"));
}

TEST_F(GatherTest, HandsOutWhatStandsInTheMemoryOfADevice) {
  auto const source = open_checkpoint(checkpoint(), world());
  auto const mesh = make_mesh(world().size());
  auto const state = load(source, mesh, world(), {.device = std::make_shared<LateDevice>()});
  expect_gathered(state, read_raw_tensors(checkpoint()));
  to_hf(state, path("from-device"), world(), {.gather = true});
  expect_equal_folders(checkpoint(), path("from-device"));
}

TEST_F(GatherTest, OneRankWritesTheCheckpointOfEveryMesh) {
  for (auto const& mesh : meshes_of(world().size())) {
    auto const out = path(fmt::format("written-{}-{}-{}", mesh.ep_replicate, mesh.ep_shard, mesh.ep));
    auto const report = to_hf(load_all(checkpoint(), mesh), out, world(), {.gather = true});
    expect_equal_folders(checkpoint(), out);
    EXPECT_EQ(report.bytes_written > 0, world().rank() == 0);
  }
}

TEST_F(GatherTest, ABitThatFlipsOnTheWayIsFoundOnEveryRankByTheNameOfItsTensor) {
  if (world().size() == 1) GTEST_SKIP() << "nothing travels";
  auto const state = load_all();
  for (auto const receivers : {Receivers::one_rank, Receivers::all_ranks}) {
    WatchedCommunicator::Seen seen{.flip_in_receive = world().rank() == 0 ? 3U : 0U};
    WatchedCommunicator watched(world(), seen);
    expect_all_fail<VerifyError>([&] { gather(state, watched, {.receivers = receivers}, [](HfBlock const&) {}); },
                                 "experts.gate_up_proj", 0);
  }
  WatchedCommunicator::Seen seen{.flip_in_receive = world().rank() == 0 ? 3U : 0U};
  WatchedCommunicator watched(world(), seen);
  expect_all_fail<VerifyError>([&] { to_hf(state, path("flipped"), watched, {.gather = true}); },
                               "experts.gate_up_proj");
  EXPECT_FALSE(std::filesystem::exists(path("flipped")));
}

TEST_F(GatherTest, ACallbackThatThrowsOnOneRankEndsAllWithItsError) {
  auto const state = load_all();
  auto const last = world().size() - 1;
  for (auto const number : {1, 40}) {  // at once, and in the middle
    auto blocks = 0;
    auto const use = [&](HfBlock const&) {
      if (world().rank() == last && ++blocks == number) throw std::runtime_error("the engine has no room");
    };
    for (auto const receivers : {Receivers::one_rank, Receivers::all_ranks}) {
      blocks = 0;
      expect_all_fail<UnexpectedError>([&] { gather(state, world(), {.receivers = receivers, .rank = last}, use); },
                                       "the engine has no room", last);
    }
  }
}

TEST_F(GatherTest, AStopOnARankThatOnlySendsEndsAll) {
  auto const state = load_all();
  std::stop_source stop;
  auto const after_a_block = [&](Progress const& progress) {
    if (progress.phase == "gather" && world().rank() == world().size() - 1) stop.request_stop();
  };
  GatherOptions const options{.call = {.progress = after_a_block, .stop = stop.get_token()}};
  EXPECT_THROW(gather(state, world(), options, [](HfBlock const&) {}), Interrupted);
  EXPECT_EQ(stop.stop_requested(), world().rank() == world().size() - 1) << "while blocks travelled";
}

TEST_F(GatherTest, RanksThatAskForDifferentThingsAreRefused) {
  auto const state = load_all();
  auto const nothing = [](HfBlock const&) {};
  expect_all_fail<UsageError>([&] { gather(state, world(), {.rank = world().size()}, nothing); }, "gathering to rank");
  expect_all_fail<UsageError>([&] { gather(state, world(), {.rank = -1}, nothing); }, "gathering to rank");
  if (world().size() == 1) return;
  expect_all_fail<UsageError>([&] { gather(state, world(), {.rank = world().rank()}, nothing); }, "same on every rank",
                              1);
}

TEST_F(GatherTest, WhatCannotBeComputedBackIsExportedButNotHandedOut) {
  synthesize_once(path("fp8"), {.layers = 1, .experts = 2, .quantization = SynthQuantization::fp8});
  auto const state = load_all(path("fp8"));
  expect_all_fail<UsageError>([&] { gather(state, world(), {.layout = ExportLayout::source}, [](HfBlock const&) {}); },
                              "layout of its source");
  ExportOptions const options{.layout = ExportLayout::source, .gather = true};
  to_hf(state, path("fp8-out"), world(), options);
  expect_equal_folders(path("fp8"), path("fp8-out"));
}

TEST_F(GatherTest, ProgressCoversWhatEachRankMoves) {
  std::uint64_t done = 0, total = 0;
  CallOptions const call{.progress = [&](Progress const& progress) {
    if (progress.phase != "gather") return;
    EXPECT_GT(progress.done, done);
    done = progress.done;
    total = progress.total;
  }};
  gather(load_all(), world(), {.call = call}, [](HfBlock const&) {});
  EXPECT_EQ(done, total);
  EXPECT_GT(total, 0U);
}

}  // namespace
}  // namespace rankslice::test

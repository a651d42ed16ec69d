#pragma once

// Loading onto a device: what is done with a state there must give the same as from host memory. A test program
// includes this once and defines `make_device`.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "rankslice/load.hpp"
#include "rankslice/to_hf.hpp"
#include "rankslice/verify.hpp"

#include "support/device_bytes.hpp"
#include "support/raw_checkpoint.hpp"
#include "support/temp_dir.hpp"
#include "synth/synth.hpp"

namespace rankslice::test {

[[nodiscard]] std::shared_ptr<Device> make_device();

struct Case {
  std::string name;
  SynthOptions checkpoint;
  OpenOptions open{};
  Mesh mesh = make_mesh(2);
};

inline void PrintTo(Case const& example, std::ostream* out) { *out << example.name; }

/// Every way in which experts lie in checkpoints, and every conversion.
inline std::vector<Case> cases() {
  auto const small = [](SynthOptions options) {
    options.layers = 1;
    options.experts = 3;
    return options;
  };
  auto const plain = small({});
  auto const split = small({.decoder_experts = ExpertForm::split, .mtp_experts = ExpertForm::split});
  auto const quantised = small({.layout = SynthLayout::hub, .quantization = SynthQuantization::fp8});
  return {
      {.name = "grouped", .checkpoint = plain},
      {.name = "grouped_and_swapped", .checkpoint = small({.layout = SynthLayout::transformers})},
      {.name = "shared_experts", .checkpoint = plain, .mesh = make_mesh(4, 2, 2)},
      {.name = "split", .checkpoint = split},
      {.name = "split_and_shared", .checkpoint = split, .mesh = make_mesh(4, 2, 2)},
      {.name = "as_float32", .checkpoint = plain, .open = {.dtype = DType::F32}},
      {.name = "as_float16", .checkpoint = plain, .open = {.dtype = DType::F16}},
      {.name = "fp8", .checkpoint = quantised},
      {.name = "fp8_shared", .checkpoint = quantised, .mesh = make_mesh(4, 2, 2)},
  };
}

class DeviceLoad : public testing::TestWithParam<Case> {
 protected:
  DeviceLoad() {
    synthesize(dir_.file("checkpoint"), GetParam().checkpoint);
    source_ = open_checkpoint(dir_.file("checkpoint"), GetParam().open);
  }

  [[nodiscard]] StateDict load_rank(int rank, std::shared_ptr<Device> const& device = nullptr) const {
    auto const& mesh = GetParam().mesh;
    return load(source_, mesh, mesh.coordinate(rank), {.device = device});
  }

  template <typename Check>
  void for_every_rank(Check const& check) const {
    for (int rank = 0; rank < GetParam().mesh.ranks(); ++rank) {
      SCOPED_TRACE(testing::Message() << "rank " << rank);
      auto const device = make_device();
      check(load_rank(rank), load_rank(rank, device), *device);
    }
  }

  TempDir dir_;
  std::shared_ptr<Checkpoint const> source_;
};

inline void expect_equal(DigestTable const& found, DigestTable const& expected) {
  EXPECT_TRUE(std::ranges::equal(found.values(), expected.values()));
}

TEST_P(DeviceLoad, EveryTensorIsTheSameAsInHostMemory) {
  for_every_rank([](StateDict const& host, StateDict const& state, Device const& device) {
    ASSERT_EQ(state.tensors.size(), host.tensors.size());
    for (auto const& [fqn, tensor] : state.tensors) {
      EXPECT_EQ(tensor.data.device.get(), &device) << fqn;
      EXPECT_EQ(tensor.local_shape, host.tensors.at(fqn).local_shape) << fqn;
      EXPECT_TRUE(copy_of(tensor.data) == copy_of(host.tensors.at(fqn).data)) << fqn << " differs";
    }
    expect_equal(state.read.source, host.read.source);
    expect_equal(state.read.stored, host.read.stored);
  });
}

// Beside its tensors a rank has at most two matrices on the device, which are on their way.
TEST_P(DeviceLoad, NeedsTheOwnedBytesAndTwoExpertsOfDeviceMemory) {
  for_every_rank([](StateDict const&, StateDict const& state, Device const& device) {
    std::uint64_t owned = 0, expert = 0;
    for (auto const& [fqn, tensor] : state.tensors) {
      owned += tensor.data.bytes;
      if (!tensor.parameter.stacked_experts || tensor.data.bytes == 0) continue;
      expert = std::max(expert, tensor.data.bytes / tensor.slice().part.size());
    }
    EXPECT_GE(device.peak_bytes(), owned);
    EXPECT_LE(device.peak_bytes(), owned + 2 * expert);
  });
}

/// Change the last element of every tensor.
inline std::size_t change(StateDict const& state) {
  std::size_t changed = 0;
  for (auto const& [fqn, tensor] : state.tensors) {
    if (tensor.data.bytes == 0) continue;
    auto bytes = copy_of(tensor.data);
    bytes.back() ^= std::byte{1};
    fill(tensor.data, bytes);
    ++changed;
  }
  return changed;
}

inline std::vector<std::string> findings(VerifyReport const& report) {
  std::vector<std::string> found;
  for (auto const& mismatch : report.mismatches) found.push_back(mismatch.what);
  return found;
}

// The messages have the digests in them.
TEST_P(DeviceLoad, WhatItHoldsIsProvedThere) {
  for_every_rank([](StateDict const& host, StateDict const& state, Device const&) {
    EXPECT_TRUE(verify(state).ok());
    auto const changed = change(state);
    (void)change(host);
    auto const found = findings(verify(state));
    EXPECT_EQ(found, findings(verify(host)));
    EXPECT_GE(found.size(), changed);
  });
}

TEST_P(DeviceLoad, ShardsAreWrittenFromIt) {
  int rank = 0;
  for_every_rank([&](StateDict const& host, StateDict const& state, Device const&) {
    save_shard(host, dir_.file("host"));
    save_shard(state, dir_.file("device"));
    auto const file = fmt::format("/rank-{:05}.safetensors", rank++);
    EXPECT_TRUE(file_bytes(dir_.file("host") + file) == file_bytes(dir_.file("device") + file));
  });
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, DeviceLoad, testing::ValuesIn(cases()),
                         [](auto const& instance) { return instance.param.name; });

}  // namespace rankslice::test

#pragma once

#include <vector>

#include "rankslice/state_dict.hpp"

#include "slice_writer.hpp"
#include "storage_reader.hpp"

namespace rankslice {

/// The tensors that this rank holds. Those on a device come through a buffer of one expert, or a few MiB of a dense
/// tensor.
class HeldTensors final : public NativeSource {
 public:
  /// @throws PlanError when a tensor of the source is missing from `state`, or is not what it says.
  explicit HeldTensors(StateDict const& state);
  void for_each_box(PlannedSlice const& wanted, BoxStep const& use) override;
  [[nodiscard]] std::span<std::byte const> kept_bytes(PlannedSlice const& wanted, bool on_device) const override;

 private:
  [[nodiscard]] ShardedTensor const& holding(PlannedSlice const& wanted) const;

  std::vector<ShardedTensor const*> by_index_;
  std::vector<std::byte> buffer_;
};

/// A stored checkpoint, streamed through a buffer of one expert, or a few MiB of a dense tensor. Digests what it reads.
class StreamedTensors final : public NativeSource {
 public:
  StreamedTensors(Storage const& storage, Model const& model);
  void for_each_box(PlannedSlice const& wanted, BoxStep const& use) override;
  [[nodiscard]] Digests const& read() const { return read_; }
  /// @throws IoError when a file changed under the reader.
  void check_unchanged() const { reader_.check_unchanged(); }

 private:
  Model const& model_;
  StorageReader reader_;
  Transfer transfer_;
  Digests read_;
  std::vector<std::byte> buffer_;
};

/// What another source gives, digested on its way to who uses it, under a model of the same parameters.
class DigestedTensors final : public NativeSource {
 public:
  /// Both outlive the result.
  DigestedTensors(NativeSource& from, Model const& model);
  void for_each_box(PlannedSlice const& wanted, BoxStep const& use) override;
  [[nodiscard]] Digests const& given() const { return given_; }

 private:
  NativeSource& from_;
  Model const& model_;
  Digests given_;
};

}  // namespace rankslice

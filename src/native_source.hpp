#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "rankslice/options.hpp"
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
  /// Both outlive the result. What is expected is read as `how` says. `swapped`: boxes are so where they can be.
  StreamedTensors(Storage const& storage, Model const& model, ReadOptions const& how = {}, bool swapped = false);
  void expect(std::vector<PlannedSlice> const& slices) override;
  void for_each_box(PlannedSlice const& wanted, BoxStep const& use) override;
  [[nodiscard]] Digests const& read() const { return read_; }
  /// @throws IoError when a file changed under the reader.
  void check_unchanged() const;

 private:
  [[nodiscard]] StorageReader& reader_for(std::uint64_t bytes);
  void next_batch();

  Storage const& storage_;
  Model const& model_;
  ReadOptions how_;
  bool swapped_;
  std::vector<PlannedSlice> expected_;
  std::vector<Range> batches_;           // of those
  std::size_t next_ = 0;                 // of the batches
  std::uint64_t still_to_come_ = 0;      // native bytes of the one before
  std::optional<StorageReader> reader_;  // of that one
  Transfer transfer_;
  Digests read_;
  std::vector<std::byte> buffer_;
};

/// What another source gives, digested on its way to who uses it, under a model of the same parameters.
class DigestedTensors final : public NativeSource {
 public:
  /// Both outlive the result.
  DigestedTensors(NativeSource& from, Model const& model);
  void expect(std::vector<PlannedSlice> const& slices) override { from_.expect(slices); }
  void for_each_box(PlannedSlice const& wanted, BoxStep const& use) override;
  [[nodiscard]] Digests const& given() const { return given_; }

 private:
  NativeSource& from_;
  Model const& model_;
  Digests given_;
};

}  // namespace rankslice

#include "read_values.hpp"

#include <map>
#include <utility>

#include "parallel_reading.hpp"
#include "state/local_tensor.hpp"

namespace rankslice {

namespace {

/// A transfer to each device that tensors are on, and to host memory.
class Transfers {
 public:
  Transfers(Model const& model, Form form, BlockDone done) : model_(model), form_(form), done_(std::move(done)) {}

  [[nodiscard]] Transfer& to(Device* device) {
    return by_device_.try_emplace(device, model_, form_, done_, device).first->second;
  }
  /// Wait until what was started is done.
  void finish() {
    for (auto& [device, transfer] : by_device_) {
      if (device != nullptr) device->finish();
    }
  }
  /// The same after an error: the memory is the caller's again, and nothing may still be on its way there.
  void abandon() noexcept {
    for (auto& [device, transfer] : by_device_) {
      try {
        if (device != nullptr) device->finish();
      } catch (...) {  // the first error says more
      }
    }
  }

 private:
  Model const& model_;
  Form form_;
  BlockDone done_;
  std::map<Device*, Transfer> by_device_;
};

/// By parameter; null for those that a state lacks.
std::vector<ShardedTensor const*> tensors_of(StateDict const& state) {
  std::vector<ShardedTensor const*> tensors(state.source->model.parameters.size());
  for (auto const& [fqn, tensor] : state.tensors) tensors[tensor.index] = &tensor;
  return tensors;
}

/// By slice: dense tensors that every rank holds whole, and experts that replicas or parts of rows are read of.
std::vector<bool> read_by_others(StateDict const& state, std::vector<PlannedSlice> const& slices) {
  auto const& mesh = state.mesh;
  std::vector<bool> shared;
  for (auto const& [index, slice] : slices) {
    auto const& parameter = state.source->model.parameters[index];
    auto const divided = mesh.ep_replicate > 1 || mesh.ep_shard > 1;
    shared.push_back(mesh.ranks() > 1 && (parameter.stacked_experts ? divided : slice == parameter.whole()));
  }
  return shared;
}

}  // namespace

Digests read_values(StateDict const& state, std::vector<PlannedSlice> const& slices, VerifyLevel level,
                    CallOptions const& call, BlockDone const& done) {
  auto const& model = state.source->model;
  auto const& storage = state.source->storage;
  auto const tensors = tensors_of(state);
  auto read = digests(level) ? Digests(model) : Digests();
  read.without_codes = storage.form == Form::native;
  auto const read_share = [&](ForEachPiece const& for_each_piece, BlockDone const& thread_done) {
    Transfers transfers(model, storage.form, thread_done);
    try {
      for_each_piece([&](PieceRead const& piece) {
        auto const& tensor = *tensors[slices[piece.item].parameter];
        NativeBox<std::byte> const box{.data = tensor.data.data.get(), .slice = tensor.slice()};
        transfers.to(tensor.data.device.get()).read(piece.piece, piece.slice, piece.files, box, piece.sink);
      });
      transfers.finish();
    } catch (...) {
      transfers.abandon();
      throw;
    }
  };
  PieceReading const reading{.how = call.reading,
                             .threads = on_a_device(state) ? 1 : call.threads,
                             .done = done,
                             .shared = read_by_others(state, slices)};
  read_pieces(storage, model, slices, reading, digests(level) ? &read : nullptr, read_share);
  return read;
}

}  // namespace rankslice

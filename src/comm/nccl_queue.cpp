#include "comm/nccl_queue.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace rankslice {
namespace {

using Kind = NcclOperation::Kind;

constexpr std::size_t kMostPieces = 256;  // of GPU memory in one direction of a round
constexpr std::size_t kAlignment = 16;    // what NCCL copies fastest

ncclRedOp_t nccl_op(Reduce op) {
  switch (op) {
    case Reduce::sum:
      return ncclSum;
    case Reduce::min:
      return ncclMin;
    case Reduce::max:
      return ncclMax;
  }
  return ncclNumOps;
}

std::size_t aligned(std::size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

struct NcclQueue::Room {
  std::span<std::byte> pinned;
  std::size_t pieces_left = kMostPieces;
};

NcclQueue::NcclQueue(NcclComm& comm, int device, std::size_t staging_bytes)
    : comm_(comm), piece_bytes_(staging_bytes / 4 / kAlignment * kAlignment) {
  OnGpu const here(device);
  cudaStream_t stream = nullptr;
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  stream_.reset(stream);
  void* pinned = nullptr;
  check_cuda(cudaHostAlloc(&pinned, 4 * piece_bytes_, cudaHostAllocDefault));
  pinned_.reset(pinned);
  for (auto& round : rounds_) {
    cudaEvent_t event = nullptr;
    check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    round.arrived.reset(event);
  }
}

void NcclQueue::add(std::shared_ptr<NcclOperation> operation) {
  if (!operation->done()) waiting_.push_back(std::move(operation));
}

void NcclQueue::advance() {
  if (!comm_.settled()) return;
  if (launching_) mark_launched();
  finish_arrived();
  while (!waiting_.empty() && under_way_ < rounds_.size()) {
    auto const next = (oldest_ + under_way_) % rounds_.size();
    fill(rounds_[next], next);
    launch(rounds_[next]);
    ++under_way_;
    launching_ = true;
    if (!comm_.settled()) return;
    mark_launched();
  }
}

void NcclQueue::fill(Round& round, std::size_t half) {
  std::span const pinned(static_cast<std::byte*>(pinned_.get()) + 2 * half * piece_bytes_, 2 * piece_bytes_);
  Room to_send{.pinned = pinned.first(piece_bytes_)};
  Room to_receive{.pinned = pinned.last(piece_bytes_)};
  for (auto const& operation : waiting_) {
    if (operation->is_collective()) {
      if (round.pieces.empty()) std::ignore = take_piece(operation, round, to_send);
      break;
    }
    take_all(operation, round, operation->kind == Kind::send ? to_send : to_receive);
  }
  while (!waiting_.empty() && waiting_.front()->launched == waiting_.front()->bytes.size()) waiting_.pop_front();
}

/// Once something has no room, nothing after it in the same direction has: order is kept.
void NcclQueue::take_all(std::shared_ptr<NcclOperation> const& operation, Round& round, Room& room) const {
  while (operation->launched < operation->bytes.size() && room.pieces_left > 0) {
    if (!take_piece(operation, round, room)) room.pieces_left = 0;
  }
}

bool NcclQueue::take_piece(std::shared_ptr<NcclOperation> const& operation, Round& round, Room& room) const {
  auto const rest = operation->bytes.subspan(operation->launched);
  Piece piece{.operation = operation, .bytes = rest.first(std::min(rest.size(), piece_bytes_))};
  if (!operation->on_gpu) {
    if (piece.bytes.size() > room.pinned.size()) return false;
    piece.staged = room.pinned.data();
    room.pinned = room.pinned.subspan(std::min(aligned(piece.bytes.size()), room.pinned.size()));
    // What a broadcast brings replaces it, except on the root.
    if (operation->kind != Kind::receive) std::memcpy(piece.staged, piece.bytes.data(), piece.bytes.size());
  }
  --room.pieces_left;
  operation->launched += piece.bytes.size();
  round.pieces.push_back(std::move(piece));
  return true;
}

void NcclQueue::launch(Round const& round) {
  check_nccl(ncclGroupStart());
  auto result = ncclSuccess;
  for (auto const& piece : round.pieces) {
    result = post(piece);
    if (result != ncclSuccess && result != ncclInProgress) break;
  }
  auto const end = ncclGroupEnd();  // also after a failure: an abort inside a group would be put off
  check_nccl(result);
  check_nccl(end);
}

ncclResult_t NcclQueue::post(Piece const& piece) {
  auto const& operation = *piece.operation;
  auto* const bytes = piece.staged != nullptr ? piece.staged : piece.bytes.data();
  auto const size = piece.bytes.size();
  switch (operation.kind) {
    case Kind::send:
      return ncclSend(bytes, size, ncclUint8, operation.peer, comm_.get(), stream_.get());
    case Kind::receive:
      return ncclRecv(bytes, size, ncclUint8, operation.peer, comm_.get(), stream_.get());
    case Kind::broadcast:
      return ncclBroadcast(bytes, bytes, size, ncclUint8, operation.peer, comm_.get(), stream_.get());
    case Kind::reduce:
      return ncclAllReduce(bytes, bytes, size / sizeof(std::uint64_t), ncclUint64, nccl_op(operation.op), comm_.get(),
                           stream_.get());
  }
  return ncclInternalError;
}

/// The newest round is on the stream: only now may anything else be put there.
void NcclQueue::mark_launched() {
  auto const newest = (oldest_ + under_way_ - 1) % rounds_.size();
  check_cuda(cudaEventRecord(rounds_[newest].arrived.get(), stream_.get()));
  launching_ = false;
}

void NcclQueue::finish_arrived() {
  while (under_way_ > 0) {
    auto& round = rounds_[oldest_];
    auto const state = cudaEventQuery(round.arrived.get());
    if (state == cudaErrorNotReady) return;
    check_cuda(state);
    for (auto const& piece : round.pieces) {
      if (piece.staged != nullptr && piece.operation->kind != Kind::send) {
        std::memcpy(piece.bytes.data(), piece.staged, piece.bytes.size());
      }
      piece.operation->finished += piece.bytes.size();
    }
    round.pieces.clear();
    oldest_ = (oldest_ + 1) % rounds_.size();
    --under_way_;
  }
}

}  // namespace rankslice

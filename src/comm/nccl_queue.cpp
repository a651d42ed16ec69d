#include "comm/nccl_queue.hpp"

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "device/cuda_current.hpp"

namespace rankslice {
namespace {

using Kind = NcclOperation::Kind;

constexpr std::size_t kMostMessages = 8;  // that share a piece: NCCL moves only so many of a group side by side

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

std::size_t part(std::size_t bytes, std::size_t parts) {
  return bytes / parts / StagingRing::kAlignment * StagingRing::kAlignment;
}

/// What one round has for one direction of one peer: a piece, or several small messages.
struct Share {
  std::size_t bytes = 0;
  std::size_t messages = 0;

  [[nodiscard]] bool has_room(std::size_t more, std::size_t most) const {
    return messages == 0 || (messages < kMostMessages && bytes + more <= most);
  }
  void add(std::size_t more) {
    bytes += more;
    ++messages;
  }
  void close() { messages = kMostMessages; }
};

}  // namespace

NcclQueue::NcclQueue(NcclComm& comm, int device, std::size_t staging_bytes)
    : comm_(comm), piece_bytes_(part(staging_bytes, 32)), collective_piece_bytes_(part(staging_bytes, 4)) {
  CurrentGpu const here(device);
  check_stream(here.error());
  cudaStream_t stream = nullptr;
  check_stream(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  stream_.reset(stream);
  void* pinned = nullptr;
  check_stream(cudaHostAlloc(&pinned, staging_bytes, cudaHostAllocDefault));
  pinned_.reset(pinned);
  ring_ = StagingRing({static_cast<std::byte*>(pinned), staging_bytes});
  for (auto& round : rounds_) {
    cudaEvent_t event = nullptr;
    check_stream(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    round.arrived.reset(event);
  }
}

void NcclQueue::leak() noexcept {
  (void)stream_.release();
  (void)pinned_.release();
  for (auto& round : rounds_) (void)round.arrived.release();
}

void NcclQueue::add(std::shared_ptr<NcclOperation> operation) {
  if (!operation->done()) waiting_.push_back(std::move(operation));
}

void NcclQueue::advance() {
  if (!comm_.settled()) return;
  if (launching_) mark_launched();
  finish_arrived();
  while (!waiting_.empty() && under_way_ < rounds_.size()) {
    auto pieces = next_pieces();
    if (!find_room(pieces)) return;
    hand_over(rounds_[(oldest_ + under_way_) % rounds_.size()], std::move(pieces));
    ++under_way_;
    launching_ = true;
    if (!comm_.settled()) return;
    mark_launched();
  }
}

NcclQueue::Pieces NcclQueue::next_pieces() const {
  auto const& first = waiting_.front();
  if (!first->is_collective()) return next_transfers();
  auto const rest = first->bytes.subspan(first->launched);
  return {{.operation = first, .bytes = rest.first(std::min(rest.size(), collective_piece_bytes_))}};
}

NcclQueue::Pieces NcclQueue::next_transfers() const {
  Pieces pieces;
  std::map<std::pair<Kind, int>, Share> shares;
  for (auto const& operation : waiting_) {
    if (operation->is_collective()) break;
    auto& share = shares[{operation->kind, operation->peer}];
    auto rest = operation->bytes.subspan(operation->launched);
    while (!rest.empty()) {
      auto const size = std::min(rest.size(), piece_bytes_);
      if (!share.has_room(size, piece_bytes_)) {
        share.close();  // what comes later must not overtake it
        break;
      }
      share.add(size);
      pieces.push_back({.operation = operation, .bytes = rest.first(size)});
      rest = rest.subspan(size);
    }
  }
  return pieces;
}

/// Either for all of them, or, where nothing is under way that could make room, for the first ones.
bool NcclQueue::find_room(Pieces& pieces) {
  auto const before = ring_.mark();
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    if (pieces[i].operation->on_gpu) continue;
    pieces[i].staged = ring_.take(pieces[i].bytes.size());
    if (pieces[i].staged != nullptr) continue;
    if (under_way_ > 0) {
      ring_.forget_since(before);
      return false;
    }
    pieces.resize(i);
  }
  return true;
}

void NcclQueue::hand_over(Round& round, Pieces pieces) {
  round.pieces = std::move(pieces);
  round.ring_mark = ring_.mark();
  for (auto const& piece : round.pieces) {
    piece.operation->launched += piece.bytes.size();
    bool const is_read = piece.operation->kind != Kind::receive;
    if (piece.staged != nullptr && is_read) std::memcpy(piece.staged, piece.bytes.data(), piece.bytes.size());
  }
  std::erase_if(waiting_, [](auto const& operation) { return operation->launched == operation->bytes.size(); });
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
  check_stream(cudaEventRecord(rounds_[newest].arrived.get(), stream_.get()));
  launching_ = false;
}

void NcclQueue::finish_arrived() {
  while (under_way_ > 0) {
    auto& round = rounds_[oldest_];
    auto const state = cudaEventQuery(round.arrived.get());
    if (state == cudaErrorNotReady) return;
    check_stream(state);
    for (auto const& piece : round.pieces) {
      if (piece.staged != nullptr && piece.operation->kind != Kind::send) {
        std::memcpy(piece.bytes.data(), piece.staged, piece.bytes.size());
      }
      piece.operation->finished += piece.bytes.size();
    }
    ring_.give_back_until(round.ring_mark);
    round.pieces.clear();
    oldest_ = (oldest_ + 1) % rounds_.size();
    --under_way_;
  }
}

void NcclFamily::advance() {
  for (auto const& member : members) member.queue->advance();
}

bool NcclFamily::all_launched() const {
  return std::all_of(members.begin(), members.end(), [](Member const& member) { return member.queue->all_launched(); });
}

bool NcclFamily::idle() const {
  return std::all_of(members.begin(), members.end(), [](Member const& member) { return member.queue->idle(); });
}

void NcclFamily::abort() noexcept { abort_members(members); }

void abort_members(std::span<NcclFamily::Member const> members) noexcept {
  std::vector<ncclComm_t> comms;
  for (auto const& member : members) comms.push_back(member.comm->release());
  if (abort_all(std::move(comms))) return;
  for (auto const& member : members) member.queue->leak();
}

}  // namespace rankslice

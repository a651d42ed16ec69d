#include "dense_ring.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <set>
#include <string>
#include <utility>

#include "io/memory.hpp"

namespace rankslice {

namespace {

/// Where steps end that are so many before the next one.
std::uint64_t end_before(Range steps, std::uint64_t next, std::uint64_t distance) {
  return std::max(steps.begin + distance, next + 1) - distance;
}

/// Call step(numbers) for every list of numbers that the shares of all ranks make up.
template <typename Step>
void for_each_shared(Digests& digests, Model const& model, DenseShares const& shares, Step const& step) {
  for (std::size_t i = 0; i < model.tensors.size(); ++i) {
    auto const parameter = model.tensors[i].parameter;
    if (!shares.shared[parameter]) continue;
    step(digests.source.of(i));
    if (model.parameters[parameter].converted()) step(digests.stored.of(i));
  }
}

}  // namespace

std::vector<int> ring_of(Communicator const& world) {
  std::vector<int> ring;
  for (auto const first : first_ranks_of_hosts(world)) {
    for (int rank = first; rank < world.size(); ++rank) {
      if (world.host(rank) == world.host(first)) ring.push_back(rank);
    }
  }
  return ring;
}

DenseRing::DenseRing(Model const& model, DenseShares const& shares, std::vector<Buffer> memory, Communicator& world,
                     std::uint64_t piece_bytes, std::uint64_t batch_bytes)
    : model_(model),
      pieces_(share_pieces(model, shares, piece_bytes)),
      memory_(std::move(memory)),
      world_(world),
      ring_(ring_of(world)),
      to_the_end_(world) {
  place_ = static_cast<std::uint64_t>(std::ranges::find(ring_, world.rank()) - ring_.begin());
  auto const group_bytes = kAhead * piece_bytes * ring_.size();
  batch_ = kAhead * std::max<std::uint64_t>(1, batch_bytes / group_bytes);
  for (auto const& of_rank : pieces_) {
    for (auto const& piece : of_rank) {
      if (!travels_directly(piece)) slot_bytes_ = std::max(slot_bytes_, piece.bytes);
    }
  }
  slots_ = allocate_host((steps_.size() + kAhead) * slot_bytes_);  // whose pages come when they are needed
}

std::uint64_t DenseRing::bytes() const {
  std::uint64_t bytes = 0;
  for (std::uint64_t back = 1; back < ring_.size(); ++back) {
    for (std::uint64_t i = 0; i < pieces_.front().size(); ++i) bytes += piece(back, i).bytes;
  }
  return bytes;
}

void DenseRing::hand_around(BlockDone const& received) {
  auto const pieces = pieces_.front().size();
  auto const steps = ring_.size() - 1;  // of each piece
  for (std::uint64_t begin = 0; steps > 0 && begin < pieces; begin += batch_) {
    auto const end = std::min(begin + batch_, pieces);
    on_every_rank(world_, [&] { take_steps({begin * steps, end * steps}, received); });
  }
}

void DenseRing::take_steps(Range steps, BlockDone const& received) {
  to_the_end_.carry([&] {
    for (auto step = steps.begin; step < steps.end; ++step) {
      finish_sends(end_before(steps, step, kAhead));
      finish_receives(end_before(steps, step, turn(step).width), received);
      start(step);
    }
    finish_receives(steps.end, received);
    finish_sends(steps.end);
  });
  to_the_end_.attempt([&] { finish_devices(); });
  to_the_end_.let_out();
}

/// Both together: a communicator of GPUs then carries them out together, and in a ring none could come first.
void DenseRing::start(std::uint64_t step) {
  auto const [number, places_back, width] = turn(step);
  auto const& sent = piece(places_back, number);
  auto const bytes = places_back > 0 ? at(step - width).came : place_of(sent, steps_.size() + step % kAhead);
  if (places_back == 0 && !travels_directly(sent)) to_the_end_.attempt([&] { pack(sent, bytes); });
  auto& here = at(step);
  here.came = place_of(piece(places_back + 1, number), step % steps_.size());
  here.receive = world_.start_receive(here.came, ring_[(place_ + ring_.size() - 1) % ring_.size()]);
  here.send = world_.start_send(bytes, ring_[(place_ + 1) % ring_.size()]);
}

void DenseRing::finish_receives(std::uint64_t end, BlockDone const& received) {
  for (; received_ < end; ++received_) {
    auto& here = at(received_);
    here.receive->wait();
    auto const [number, places_back, width] = turn(received_);
    auto const& came = piece(places_back + 1, number);
    to_the_end_.attempt([&] {
      if (!travels_directly(came)) unpack(came, here.came);
      received(came.bytes);
    });
  }
}

void DenseRing::finish_sends(std::uint64_t end) {
  for (; sent_ < end; ++sent_) at(sent_).send->wait();
}

DenseRing::Turn DenseRing::turn(std::uint64_t step) const {
  auto const pieces = pieces_.front().size();
  auto const in_group = kAhead * (ring_.size() - 1);
  auto const group = step / in_group * kAhead;
  auto const width = std::min<std::uint64_t>(kAhead, pieces - group);
  auto const rest = step % in_group;
  return {.piece = group + rest % width, .places_back = rest / width, .width = width};
}

SharePiece const& DenseRing::piece(std::uint64_t places_back, std::uint64_t number) const {
  auto const owner = ring_[(place_ + ring_.size() - places_back) % ring_.size()];
  return pieces_[static_cast<std::size_t>(owner)][number];
}

/// From its place in memory, or into it.
bool DenseRing::travels_directly(SharePiece const& piece) const {
  return piece.slices.size() == 1 &&
         (world_.takes_device_memory() || memory_[piece.slices.front().parameter].device == nullptr);
}

std::span<std::byte> DenseRing::place_of(SharePiece const& piece, std::uint64_t slot) {
  if (travels_directly(piece)) return {address(piece.slices.front()), piece.bytes};
  return slots_.span().subspan(slot * slot_bytes_, piece.bytes);
}

std::byte* DenseRing::address(PlannedSlice const& slice) const {
  auto const unit = model_.parameters[slice.parameter].unit_bytes(Form::native);
  return memory_[slice.parameter].data.get() + slice.slice.part.begin * unit;
}

void DenseRing::pack(SharePiece const& piece, std::span<std::byte> bytes) const {
  for (auto const& item : piece.slices) {
    auto const size = model_.parameters[item.parameter].bytes(item.slice, Form::native);
    auto const to = bytes.first(size);
    if (auto* const device = memory_[item.parameter].device.get()) {
      device->download(address(item), to);
    } else {
      std::memcpy(to.data(), address(item), size);
    }
    bytes = bytes.subspan(size);
  }
}

void DenseRing::unpack(SharePiece const& piece, std::span<std::byte const> bytes) const {
  for (auto const& item : piece.slices) {
    auto const size = model_.parameters[item.parameter].bytes(item.slice, Form::native);
    if (auto* const device = memory_[item.parameter].device.get()) {
      auto const staged = device->staging(size);
      std::memcpy(staged.data(), bytes.data(), size);
      device->upload(staged, address(item));
    } else {
      std::memcpy(address(item), bytes.data(), size);
    }
    bytes = bytes.subspan(size);
  }
}

void DenseRing::finish_devices() const {
  std::set<Device*> devices;
  for (auto const& memory : memory_) devices.insert(memory.device.get());
  for (auto* const device : devices) {
    if (device != nullptr) device->finish();
  }
}

void add_shares_of_all(Digests& read, Model const& model, DenseShares const& shares, Communicator& world) {
  std::vector<std::uint64_t> numbers;
  on_every_rank(world, [&] {
    for_each_shared(read, model, shares,
                    [&](std::span<std::uint64_t> of) { numbers.insert(numbers.end(), of.begin(), of.end()); });
  });
  world.all_reduce(numbers, Reduce::sum);
  auto next = numbers.begin();
  for_each_shared(read, model, shares, [&](std::span<std::uint64_t> of) {
    std::copy_n(next, of.size(), of.begin());
    next += static_cast<std::ptrdiff_t>(of.size());
  });
}

}  // namespace rankslice

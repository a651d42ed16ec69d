#include "gathered_tensors.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <iterator>
#include <set>
#include <utility>

#include "rankslice/error.hpp"

#include "core/rows_before.hpp"
#include "io/memory.hpp"

namespace rankslice {

namespace {

void wait_for(std::vector<std::unique_ptr<PendingTransfer>>& transfers) {
  for (auto const& transfer : transfers) transfer->wait();
  transfers.clear();
}

/// The root's bytes are only read.
std::span<std::byte> as_broadcast(std::span<std::byte const> bytes) {
  return {const_cast<std::byte*>(bytes.data()), bytes.size()};
}

}  // namespace

GatherPaths::GatherPaths(GatherRoute route, Communicator& world) : route_(std::move(route)), world_(world) {
  auto const& receivers = route_.receivers;
  auto const mine = std::ranges::find(receivers, world.rank());
  if (mine != receivers.end()) place_ = static_cast<int>(mine - receivers.begin());
  auto const all = static_cast<int>(receivers.size()) == world.size();
  if (receivers.size() == 1 || all) return;
  if (!world.takes_device_memory()) {
    part_ = world.split(receives() ? 1 : 0);
  } else if (receives()) {
    std::ranges::remove_copy(receivers, std::back_inserter(sent_to_), world.rank());
  }
}

Communicator* GatherPaths::receivers() const {
  if (!receives() || route_.receivers.size() == 1 || !sent_to_.empty()) return nullptr;
  return part_ ? part_.get() : &world_;
}

int GatherPaths::place_of(int rank) const {
  return static_cast<int>(std::ranges::find(route_.receivers, rank) - route_.receivers.begin());
}

GatheredTensors::GatheredTensors(Model const& model, GatherPlan const& plan, GatherPaths const& paths,
                                 NativeSource& own, BlockDone sent)
    : model_(model), plan_(plan), paths_(paths), own_(own), sent_(std::move(sent)), to_the_end_(paths.world()) {
  std::uint64_t largest = 0;
  for (auto const& block : plan.blocks) {
    if (!block.parts.empty()) {
      largest = std::max(largest, model.parameters[block.parameter].bytes(block.slice, Form::native));
    }
  }
  for (auto& each : travelling_) each.buffer = allocate_host(largest);  // whose pages come when they are needed
}

void GatheredTensors::gather(BatchStep const& use) {
  on_every_rank(paths_.world(), [&] { try_ways(); });
  for (auto const& batch : plan_.batches) {
    on_every_rank(paths_.world(), [&] { take_part(batch, use); });
  }
}

/// Nothing goes along every way to a root, once: a communicator that cannot send says so before there are batches.
void GatheredTensors::try_ways() const {
  auto& world = paths_.world();
  std::set<int> owners;
  for (auto const& block : plan_.blocks) {
    for (auto const& part : block.parts) owners.insert(part.owner);
  }
  std::vector<std::unique_ptr<PendingTransfer>> tries;
  for (auto const owner : owners) {
    auto const root = paths_.root_of(owner);
    if (root == owner) continue;
    if (owner == world.rank()) tries.push_back(world.start_send({}, root));
    if (root == world.rank()) tries.push_back(world.start_receive({}, owner));
  }
  wait_for(tries);
}

/// To the end of the batch, whatever happens (Note [To the end]).
void GatheredTensors::take_part(Range batch, BatchStep const& use) {
  end_ = batch.end;
  to_root_ = to_receivers_ = used_ = batch.begin;
  std::exception_ptr failed;  // with the blocks, and what it sends itself may still be right
  try {
    if (paths_.receives()) use(slices_of(plan_, batch), *this);
  } catch (...) {
    failed = std::current_exception();
  }
  while (used_ < end_) next(nullptr);
  to_the_end_.carry([&] { settle(); });
  if (failed) std::rethrow_exception(failed);
  to_the_end_.let_out();
}

void GatheredTensors::for_each_box(PlannedSlice const& wanted, BoxStep const& use) {
  auto const is_next = [&](GatherBlock const& block, std::uint64_t begin) {
    return block.parameter == wanted.parameter && block.slice.part.begin == begin;
  };
  auto at = wanted.slice.part.begin;
  do {
    if (used_ == end_ || !is_next(plan_.blocks[used_], at)) {
      throw UnexpectedError(fmt::format("{}: {} is not what is gathered next", model_.parameters[wanted.parameter].fqn,
                                        to_string(wanted.slice)));
    }
    auto const& block = plan_.blocks[used_];
    next(&use);
    to_the_end_.let_out();
    at = block.slice.part.end;
  } while (at < wanted.slice.part.end);
}

/// The block after the last one; two further ones are on their way meanwhile.
void GatheredTensors::next(BoxStep const* use) {
  auto const block = used_++;
  auto& here = travelling(block);
  to_the_end_.carry([&] {
    while (to_root_ < std::min(block + 3, end_)) start_to_root(to_root_++);
    while (to_receivers_ < std::min(block + 2, end_)) start_to_receivers(to_receivers_++);
    wait_for(here.to_receivers);
  });
  if (use == nullptr || to_the_end_.failed()) return;
  auto const& [parameter, slice, parts] = plan_.blocks[block];
  if (parts.empty()) {
    own_.for_each_box({parameter, slice}, *use);
  } else {
    (*use)(slice, here.box);
  }
}

/// From the owners to the root, unless that is the owner.
void GatheredTensors::start_to_root(std::uint64_t number) {
  auto const& block = plan_.blocks[number];
  auto& here = travelling(number);
  wait_for(here.to_root);  // of the block whose memory this one gets
  here.parts.clear();
  auto& world = paths_.world();
  for (auto const& part : block.parts) {
    auto const root = paths_.root_of(part.owner);
    auto& bytes = here.parts.emplace_back();
    if (part.owner == world.rank()) {
      bytes = own_bytes(here, block, part);
      if (root != part.owner) here.to_root.push_back(world.start_send(bytes, root));
    } else if (root == world.rank()) {
      auto const room = room_for(here, block, part.slice);
      bytes = room;
      here.to_root.push_back(world.start_receive(room, part.owner));
    }
  }
}

/// From the roots to all others who receive.
void GatheredTensors::start_to_receivers(std::uint64_t number) {
  if (!paths_.receives()) return;
  auto const& block = plan_.blocks[number];
  auto& here = travelling(number);
  wait_for(here.to_root);
  auto* const receivers = paths_.receivers();
  for (std::size_t i = 0; i < block.parts.size(); ++i) {
    auto const& [owner, slice] = block.parts[i];
    auto const root = paths_.root_of(owner);
    auto const is_root = root == paths_.world().rank();
    auto const room = room_for(here, block, slice);
    if (receivers != nullptr) {
      auto const bytes = is_root ? as_broadcast(here.parts[i]) : room;
      here.to_receivers.push_back(receivers->start_broadcast(bytes, paths_.place_of(root)));
    }
    start_one_by_one(here, is_root ? here.parts[i] : room, root);
    auto const is_elsewhere = is_root && here.parts[i].data() != room.data();
    if (is_elsewhere && block.parts.size() > 1) std::ranges::copy(here.parts[i], room.begin());
  }
  auto const alone = block.parts.size() == 1 && !here.parts.front().empty();
  here.box = {.data = alone ? here.parts.front().data() : here.buffer.data.get(), .slice = block.slice};
}

/// As a broadcast among the receivers, where there is none.
void GatheredTensors::start_one_by_one(Travelling& here, std::span<std::byte const> bytes, int root) {
  auto const& others = paths_.sent_to();
  if (others.empty()) return;
  auto& world = paths_.world();
  if (root != world.rank()) {
    here.to_receivers.push_back(world.start_receive(as_broadcast(bytes), root));
    return;
  }
  for (auto const other : others) here.to_receivers.push_back(world.start_send(bytes, other));
}

/// Nothing is under way any more.
void GatheredTensors::settle() {
  for (auto& each : travelling_) {
    wait_for(each.to_root);
    wait_for(each.to_receivers);
  }
}

/// What this rank has of a block: where its source keeps it, or in the block's own memory; after a failure anything.
std::span<std::byte const> GatheredTensors::own_bytes(Travelling& here, GatherBlock const& block,
                                                      GatherPart const& part) {
  auto const& parameter = model_.parameters[block.parameter];
  auto const& world = paths_.world();
  auto const only_sent = paths_.root_of(part.owner) != world.rank();
  std::span<std::byte const> bytes = room_for(here, block, part.slice);
  to_the_end_.attempt([&] {
    PlannedSlice const wanted{block.parameter, part.slice};
    auto const kept = own_.kept_bytes(wanted, only_sent && world.takes_device_memory());
    if (!kept.empty()) {
      bytes = kept;
    } else {
      own_.for_each_box(wanted, [&](Slice const& slice, NativeBox<std::byte const> const& box) {
        std::span const found(box.data + bytes_before(parameter, box.slice, slice),
                              parameter.bytes(slice, Form::native));
        std::ranges::copy(found, room_for(here, block, slice).begin());
      });
    }
    sent_(bytes.size());
  });
  return bytes;
}

/// The place of a part in memory for its block.
std::span<std::byte> GatheredTensors::room_for(Travelling& here, GatherBlock const& block, Slice const& part) const {
  auto const& parameter = model_.parameters[block.parameter];
  return here.buffer.span().subspan(bytes_before(parameter, block.slice, part), parameter.bytes(part, Form::native));
}

}  // namespace rankslice

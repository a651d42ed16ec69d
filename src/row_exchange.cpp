#include "row_exchange.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "io/memory.hpp"
#include "to_the_end.hpp"

namespace rankslice {

namespace {

using RowSums = std::array<std::uint64_t, kRowSums>;

/// The numbers of one expert in the tables of digests, in the order in which they travel; null: there is none.
std::array<std::uint64_t*, kRowSums> sums_of(Model const& model, RowBlock const& block, Digests& digests) {
  auto const& tensor = model.tensors[block.piece->tensor];
  auto const entry = block.expert - tensor.experts.begin;
  auto const at = [&](DigestTable& table, std::size_t index) { return &table.of(index)[entry]; };
  auto const converted = model.parameters[block.piece->parameter].converted();
  return {at(digests.source, block.piece->tensor), converted ? at(digests.stored, block.piece->tensor) : nullptr,
          block.piece->scales ? at(digests.source, *tensor.scales) : nullptr};
}

/// One exchange of one rank.
class RowExchange {
 public:
  RowExchange(StateDict const& state, RowExchangePlan const& plan, Digests* sums, BlockDone done, Communicator& world,
              ReadOptions const& how, OpenFile const& open);

  void run();

 private:
  /// A block on its way.
  struct Travelling {
    Buffer buffer;
    std::vector<std::unique_ptr<PendingTransfer>> transfers;
  };

  void allocate();
  void try_ways();
  void take_part(Range batch);
  void start(std::uint64_t block);
  void finish(std::uint64_t block);
  void read(RowBlock const& block, Travelling& here);
  void place(RowBlock const& block, Travelling& here);
  void add_sums(RowBlock const& block, std::span<std::byte const> bytes);
  void finish_devices();
  [[nodiscard]] ParameterDigest* digest_of(std::uint32_t parameter);
  [[nodiscard]] Transfer& transfer_to(Device* device);
  [[nodiscard]] Slice rows_of(RowBlock const& block, std::size_t place) const;
  [[nodiscard]] std::span<std::byte> outgoing(Travelling const& here, RowBlock const& block, std::size_t to) const;
  [[nodiscard]] std::span<std::byte> incoming(Travelling const& here, RowBlock const& block, std::size_t from) const;
  [[nodiscard]] Travelling& travelling(std::uint64_t block) { return travelling_[block % travelling_.size()]; }
  [[nodiscard]] std::size_t places() const { return plan_.group.size(); }
  [[nodiscard]] std::uint64_t message_bytes(RowBlock const& block, std::size_t from) const {
    return row_value_bytes(model_, plan_, block, from) + kRowSumBytes;
  }

  Model const& model_;
  RowExchangePlan const& plan_;
  Digests* sums_;
  Communicator& world_;
  StorageReader reader_;
  BlockDone done_;
  Transfer read_transfer_;
  std::map<Device*, Transfer> transfers_;
  std::map<std::uint32_t, ShardedTensor const*> tensors_;  // by parameter
  std::map<std::uint32_t, ParameterDigest> digests_;       // of the batch, by parameter
  std::vector<Digests> read_for_;                          // by place; zero between blocks
  std::uint64_t largest_ = 0;                              // message of all
  std::array<Travelling, 3> travelling_;
  ToTheEnd to_the_end_;
};

RowExchange::RowExchange(StateDict const& state, RowExchangePlan const& plan, Digests* sums, BlockDone done,
                         Communicator& world, ReadOptions const& how, OpenFile const& open)
    : model_(state.source->model),
      plan_(plan),
      sums_(sums),
      world_(world),
      reader_(state.source->storage, model_, {.extents = row_extents(model_, plan), .how = how}, open),
      done_(std::move(done)),
      read_transfer_(model_, Form::hf, done_),
      to_the_end_(world) {
  for (auto const& [fqn, tensor] : state.tensors) tensors_.emplace(tensor.index, &tensor);
  allocate();
}

void RowExchange::run() {
  on_every_rank(world_, [&] { try_ways(); });
  try {
    for (auto const& batch : plan_.batches) {
      on_every_rank(world_, [&] { take_part(batch); });
    }
    on_every_rank(world_, [&] {
      finish_devices();
      reader_.finish();
    });
  } catch (...) {
    // The memory is the caller's again, and nothing may still be on its way there. The first error says more.
    try {
      finish_devices();
    } catch (...) {
    }
    throw;
  }
}

void RowExchange::allocate() {
  for (auto const& block : plan_.blocks) {
    for (std::size_t from = 0; from < places(); ++from) largest_ = std::max(largest_, message_bytes(block, from));
  }
  for (auto& each : travelling_) each.buffer = allocate_host(2 * places() * largest_);
  if (sums_ != nullptr) read_for_.assign(places(), Digests(model_));
}

/// Nothing goes along every way, once: a communicator that cannot send says so before anything is read.
void RowExchange::try_ways() {
  std::vector<std::unique_ptr<PendingTransfer>> tries;
  for (auto const rank : plan_.group) {
    if (rank == world_.rank()) continue;
    tries.push_back(world_.start_send({}, rank));
    tries.push_back(world_.start_receive({}, rank));
  }
  for (auto const& each : tries) each->wait();
}

/// To the end of the batch, whatever happens.
void RowExchange::take_part(Range batch) {
  constexpr std::uint64_t kUnderWay = 2;  // while one more is read
  auto finished = batch.begin;
  for (auto block = batch.begin; block < batch.end; ++block) {
    start(block);
    if (block >= batch.begin + kUnderWay) finish(finished++);
  }
  while (finished < batch.end) finish(finished++);
  digests_.clear();
  to_the_end_.let_out();
}

void RowExchange::start(std::uint64_t number) {
  auto const& block = plan_.blocks[number];
  auto& here = travelling(number);
  to_the_end_.attempt([&] { read(block, here); });
  to_the_end_.carry([&] {
    for (std::size_t other = 0; other < places(); ++other) {
      if (other == plan_.place) continue;
      here.transfers.push_back(world_.start_receive(incoming(here, block, other), plan_.group[other]));
      here.transfers.push_back(world_.start_send(outgoing(here, block, other), plan_.group[other]));
    }
  });
}

void RowExchange::finish(std::uint64_t number) {
  auto& here = travelling(number);
  to_the_end_.carry([&] {
    for (auto const& transfer : here.transfers) transfer->wait();
    here.transfers.clear();
  });
  to_the_end_.attempt([&] { place(plan_.blocks[number], here); });
}

/// This rank's band, for everyone.
void RowExchange::read(RowBlock const& block, Travelling& here) {
  auto const band = band_of(block, plan_.place, places());
  auto* const digest = digest_of(block.piece->parameter);
  std::vector<RowsFor> to;
  for (std::size_t i = 0; i < places(); ++i) {
    to.push_back({.rows = rows_of(block, i).rows,
                  .values = outgoing(here, block, i).data(),
                  .sink = {.digest = digest, .sums = digest != nullptr ? &read_for_[i] : nullptr}});
  }
  if (!band.empty()) {
    read_transfer_.read_rows(*block.piece, block.expert, band, reader_.files_of(*block.piece), to);
  }
  for (std::size_t i = 0; i < places(); ++i) {
    RowSums sums{};
    if (digest != nullptr) {
      auto const numbers = sums_of(model_, block, read_for_[i]);
      for (std::size_t n = 0; n < kRowSums; ++n) {
        if (numbers[n] != nullptr) sums[n] = std::exchange(*numbers[n], 0);
      }
    }
    std::memcpy(outgoing(here, block, i).last(kRowSumBytes).data(), sums.data(), kRowSumBytes);
  }
}

/// Everyone's bands, for this rank.
void RowExchange::place(RowBlock const& block, Travelling& here) {
  auto const& tensor = *tensors_.at(block.piece->parameter);
  NativeBox<std::byte> const box{.data = tensor.data.data.get(), .slice = tensor.slice()};
  auto& transfer = transfer_to(tensor.data.device.get());
  for (std::size_t from = 0; from < places(); ++from) {
    auto const bytes = from == plan_.place ? outgoing(here, block, from) : incoming(here, block, from);
    auto const band = band_of(block, from, places());
    if (!band.empty()) transfer.place_rows(*block.piece, block.expert, band, bytes.data(), box);
    add_sums(block, bytes.last(kRowSumBytes));
    if (from != plan_.place && done_) done_(bytes.size());
  }
}

/// The digests that came with a band.
void RowExchange::add_sums(RowBlock const& block, std::span<std::byte const> bytes) {
  if (sums_ == nullptr) return;
  RowSums sums{};
  std::memcpy(sums.data(), bytes.data(), kRowSumBytes);
  auto const numbers = sums_of(model_, block, *sums_);
  for (std::size_t n = 0; n < kRowSums; ++n) {
    if (numbers[n] != nullptr) *numbers[n] += sums[n];
  }
}

void RowExchange::finish_devices() {
  for (auto& [device, transfer] : transfers_) {
    if (device != nullptr) device->finish();
  }
}

ParameterDigest* RowExchange::digest_of(std::uint32_t parameter) {
  if (sums_ == nullptr) return nullptr;
  return &digests_.try_emplace(parameter, model_, model_.parameters[parameter]).first->second;
}

Transfer& RowExchange::transfer_to(Device* device) {
  return transfers_.try_emplace(device, model_, Form::hf, BlockDone(), device).first->second;
}

/// What a place of the group holds of a block's expert.
Slice RowExchange::rows_of(RowBlock const& block, std::size_t place) const {
  auto const rows = model_.parameters[block.piece->parameter].row_count();
  return {.part = {block.expert, block.expert + 1}, .rows = balanced_part(rows, places(), place)};
}

std::span<std::byte> RowExchange::outgoing(Travelling const& here, RowBlock const& block, std::size_t to) const {
  return here.buffer.span().subspan(to * largest_, message_bytes(block, plan_.place));
}

std::span<std::byte> RowExchange::incoming(Travelling const& here, RowBlock const& block, std::size_t from) const {
  return here.buffer.span().subspan((places() + from) * largest_, message_bytes(block, from));
}

}  // namespace

void exchange_rows(StateDict const& state, RowExchangePlan const& plan, Digests* sums, BlockDone const& done,
                   Communicator& world, ReadOptions const& how, OpenFile const& open) {
  if (plan.batches.empty()) return;
  std::optional<RowExchange> exchange;
  // Memory may lack now, but not when others wait for this rank.
  on_every_rank(world, [&] { exchange.emplace(state, plan, sums, done, world, how, open); });
  exchange->run();
}

}  // namespace rankslice

#include "comm/gpu_cards.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <map>
#include <utility>

namespace rankslice {
namespace {

constexpr int kSharesGpus = 23000;  // NCCL 2.30.0

std::string version_text(int code) { return fmt::format("{}.{}.{}", code / 10000, code / 100 % 100, code % 100); }

std::string rank_text(std::span<GpuCard const> cards, std::size_t rank) {
  return fmt::format("rank {} (host {})", rank, cards[rank].host);
}

NcclRefusal refusal(std::size_t rank, std::string message) {
  return {.rank = static_cast<int>(rank), .message = std::move(message)};
}

/// The first rank whose card is so.
template <typename Predicate>
std::optional<std::size_t> first_that(std::span<GpuCard const> cards, Predicate const& is_so) {
  for (std::size_t rank = 0; rank < cards.size(); ++rank) {
    if (is_so(cards[rank])) return rank;
  }
  return std::nullopt;
}

std::optional<NcclRefusal> refuse_missing_gpus(std::span<GpuCard const> cards) {
  std::size_t missing = 0;
  for (auto const& card : cards) missing += card.gpu.empty() ? 1U : 0U;
  if (missing == 0) return std::nullopt;
  auto const first = first_that(cards, [](GpuCard const& card) { return card.gpu.empty(); }).value();
  auto const more = missing > 1 ? fmt::format("; {} of {} ranks have no GPU", missing, cards.size()) : "";
  return refusal(first, fmt::format("NCCL needs a GPU for every rank, and {} has none: {}{}. --comm mpi does without",
                                    rank_text(cards, first), cards[first].why_none, more));
}

std::optional<NcclRefusal> refuse_versions(std::span<GpuCard const> cards) {
  auto const old = first_that(cards, [](GpuCard const& card) { return card.nccl_version < card.built_with; });
  if (old) {
    return refusal(*old, fmt::format("{} found NCCL {}, older than the {} that this program was built with: put the "
                                     "newer libnccl.so.2 first in LD_LIBRARY_PATH, or use --comm mpi",
                                     rank_text(cards, *old), version_text(cards[*old].nccl_version),
                                     version_text(cards[*old].built_with)));
  }
  auto const other = first_that(cards, [&](GpuCard const& card) { return card.nccl_version != cards[0].nccl_version; });
  if (!other) return std::nullopt;
  return refusal(*other, fmt::format("{} found NCCL {}, but {} {}: all ranks need the same, look at their "
                                     "LD_LIBRARY_PATH, or use --comm mpi",
                                     rank_text(cards, *other), version_text(cards[*other].nccl_version),
                                     rank_text(cards, 0), version_text(cards[0].nccl_version)));
}

std::optional<NcclRefusal> refuse_staging(std::span<GpuCard const> cards) {
  auto const other =
      first_that(cards, [&](GpuCard const& card) { return card.staging_bytes != cards[0].staging_bytes; });
  if (!other) return std::nullopt;
  return refusal(*other, fmt::format("{} stages {} bytes, but {} {}: they would cut their messages differently",
                                     rank_text(cards, *other), cards[*other].staging_bytes, rank_text(cards, 0),
                                     cards[0].staging_bytes));
}

std::optional<NcclRefusal> refuse_shared_gpus(std::span<GpuCard const> cards) {
  std::map<std::pair<std::string, std::string>, std::size_t> owners;
  for (std::size_t rank = 0; rank < cards.size(); ++rank) {
    auto const& card = cards[rank];
    auto const [owner, first] = owners.try_emplace({card.host, card.gpu}, rank);
    if (first) continue;
    bool const told = card.shares_gpu && cards[owner->second].shares_gpu;
    if (told && card.nccl_version >= kSharesGpus) continue;
    auto const version = version_text(card.nccl_version);
    return refusal(
        owner->second,
        fmt::format("ranks {} and {} (host {}) have the same GPU, {}, and NCCL {} wants one for each. Start "
                    "no more ranks on a host than it has GPUs (here {}), or use --comm mpi{}",
                    owner->second, rank, card.host, card.gpu, version, card.visible_gpus,
                    card.nccl_version >= kSharesGpus ? ", or set NCCL_MULTI_RANK_GPU_ENABLE=1"
                                                     : "; from 2.30 on NCCL_MULTI_RANK_GPU_ENABLE=1 allows it"));
  }
  return std::nullopt;
}

std::string pack(GpuCard const& card) {
  return nlohmann::json{{"host", card.host},
                        {"gpu", card.gpu},
                        {"why_none", card.why_none},
                        {"visible_gpus", card.visible_gpus},
                        {"nccl_version", card.nccl_version},
                        {"built_with", card.built_with},
                        {"staging_bytes", card.staging_bytes},
                        {"shares_gpu", card.shares_gpu}}
      .dump();
}

GpuCard unpack(std::span<std::byte const> bytes) {
  auto const* const text = reinterpret_cast<char const*>(bytes.data());
  auto const card = nlohmann::json::parse(text, text + bytes.size());
  return {.host = card.at("host"),
          .gpu = card.at("gpu"),
          .why_none = card.at("why_none"),
          .visible_gpus = card.at("visible_gpus"),
          .nccl_version = card.at("nccl_version"),
          .built_with = card.at("built_with"),
          .staging_bytes = card.at("staging_bytes"),
          .shares_gpu = card.at("shares_gpu")};
}

}  // namespace

std::optional<NcclRefusal> refuse_nccl(std::span<GpuCard const> cards) {
  using Refuse = std::optional<NcclRefusal> (*)(std::span<GpuCard const>);
  for (Refuse const refuse : {refuse_missing_gpus, refuse_versions, refuse_staging, refuse_shared_gpus}) {
    if (auto refused = refuse(cards)) return refused;
  }
  return std::nullopt;
}

std::vector<GpuCard> exchange_cards(Communicator& base, GpuCard const& mine) {
  auto const packed = pack(mine);
  std::vector<GpuCard> cards;
  for (auto const& bytes : all_gather(base, std::as_bytes(std::span(packed)))) cards.push_back(unpack(bytes));
  return cards;
}

}  // namespace rankslice

#include "rankslice/communicator.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <new>
#include <set>
#include <thread>
#include <utility>

#include "comm/checked_bytes.hpp"
#include "comm/outcome.hpp"
#include "core/host_name.hpp"

namespace rankslice {
namespace {

class SoloCommunicator final : public Communicator {
 public:
  [[nodiscard]] int rank() const override { return 0; }
  [[nodiscard]] int size() const override { return 1; }
  [[nodiscard]] std::string_view kind() const override { return "none"; }
  [[nodiscard]] std::string const& host(int /*rank*/) const override { return host_; }

  void all_reduce(std::span<std::uint64_t> /*values*/, Reduce /*op*/) override {}
  void broadcast(std::span<std::byte> /*bytes*/, int root) override { check_root(root); }
  [[nodiscard]] std::vector<std::vector<std::byte>> gather(std::span<std::byte const> bytes, int root) override {
    check_root(root);
    return {{bytes.begin(), bytes.end()}};
  }
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_send(std::span<std::byte const> /*bytes*/, int to) override {
    refuse_peer(to);
  }
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_receive(std::span<std::byte> /*bytes*/, int from) override {
    refuse_peer(from);
  }
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_broadcast(std::span<std::byte> /*bytes*/, int root) override {
    check_root(root);
    return std::make_unique<Nothing>();
  }
  [[nodiscard]] std::unique_ptr<Communicator> split(int /*color*/) override { return make_solo_communicator(); }

  [[nodiscard]] Outcome agree(Outcome const& mine) override {
    if (mine.code == ExitCode::done) return {};
    Outcome agreed = mine;
    agreed.rank = 0;
    return agreed;
  }
  void progress() override {}
  void wait_until(std::function<bool()> const& done) override {
    while (!done()) std::this_thread::yield();
  }
  [[noreturn]] void abort(ExitCode code, std::string const& message) override { throw CommError(code, message); }

 private:
  class Nothing final : public PendingTransfer {
    void wait() override {}
  };

  [[noreturn]] static void refuse_peer(int rank) {
    throw UsageError("rank " + std::to_string(rank) + " as another rank in a communicator of one rank");
  }
  static void check_root(int root) {
    if (root != 0) throw UsageError("root rank " + std::to_string(root) + " in a communicator of one rank");
  }

  std::string host_ = host_name();
};

Outcome unexpected(std::string message) {
  return {.code = ExitCode::unexpected, .message = std::move(message), .file = {}, .tensor = {}};
}

template <typename SomeError>
[[noreturn]] void raise(SomeError error, Outcome const& failure) {
  error.file = failure.file;
  error.tensor = failure.tensor;
  error.rank = failure.rank;
  throw error;
}

}  // namespace

Outcome outcome_of(std::function<void()> const& step) {
  try {
    step();
    return {};
  } catch (Error const& error) {
    return {.code = error.code, .message = error.what(), .file = error.file, .tensor = error.tensor};
  } catch (std::bad_alloc const&) {
    return unexpected("out of memory: the system refused an allocation");
  } catch (std::exception const& error) {
    return unexpected(std::string("unexpected: ") + error.what());
  } catch (...) {
    return unexpected("unexpected: an exception of unknown type");
  }
}

void raise(Outcome const& failure) {
  switch (failure.code) {
    case ExitCode::usage:
      raise(UsageError(failure.message), failure);
    case ExitCode::difference:
      raise(VerifyError(failure.message), failure);
    case ExitCode::bad_data:
      raise(FormatError(failure.message), failure);
    case ExitCode::input_missing:
    case ExitCode::cannot_create:
    case ExitCode::io:
      raise(IoError(failure.code, failure.message), failure);
    case ExitCode::unavailable:
      raise(DeviceError(failure.message), failure);
    case ExitCode::timeout:
    case ExitCode::bad_launch:
      raise(CommError(failure.code, failure.message), failure);
    case ExitCode::interrupted:
    case ExitCode::terminated:
      raise(Interrupted(failure.code), failure);
    case ExitCode::done:
    case ExitCode::unexpected:
      break;
  }
  raise(UnexpectedError(failure.message), failure);
}

std::unique_ptr<Communicator> make_solo_communicator() { return std::make_unique<SoloCommunicator>(); }

void on_every_rank(Communicator& world, std::function<void()> const& step) {
  world.begin_step();
  auto const agreed = world.agree(outcome_of(step));
  if (agreed.code != ExitCode::done) raise(agreed);
}

void broadcast_vector(Communicator& world, std::vector<std::byte>& bytes, int root) {
  if (world.size() == 1) return;
  on_every_rank(world, [&] {
    if (world.rank() == root) add_checksum(bytes);
  });
  std::array<std::uint64_t, 2> size{bytes.size(), bytes.size()};  // twice: a size that was damaged shows
  world.broadcast(std::as_writable_bytes(std::span(size)), root);
  auto const sender = fmt::format("rank {}", root);
  on_every_rank(world, [&] {
    if (size[0] != size[1]) throw VerifyError(fmt::format("a size from {} was damaged on its way", sender));
    bytes.resize(size[0]);
  });
  world.broadcast(bytes, root);
  on_every_rank(world, [&] { remove_checksum(bytes, sender); });
}

std::vector<std::vector<std::byte>> all_gather(Communicator& world, std::span<std::byte const> bytes) {
  auto everyone = gather_checked(world, {bytes.begin(), bytes.end()}, 0);
  std::vector<std::byte> all;
  for (auto const& theirs : everyone) {
    auto const size = std::uint64_t{theirs.size()};
    auto const header = std::as_bytes(std::span(&size, 1));
    all.insert(all.end(), header.begin(), header.end());
    all.insert(all.end(), theirs.begin(), theirs.end());
  }
  broadcast_vector(world, all, 0);
  everyone.assign(static_cast<std::size_t>(world.size()), {});
  auto rest = std::span<std::byte const>(all);
  for (auto& theirs : everyone) {
    std::uint64_t size = 0;
    std::memcpy(&size, rest.data(), sizeof size);
    rest = rest.subspan(sizeof size);
    theirs.assign(rest.begin(), rest.begin() + static_cast<std::ptrdiff_t>(size));
    rest = rest.subspan(size);
  }
  return everyone;
}

void barrier(Communicator& world) {
  on_every_rank(world, [] {});
}

std::vector<int> first_ranks_of_hosts(Communicator const& world) {
  std::set<std::string> hosts;
  std::vector<int> first;
  for (int rank = 0; rank < world.size(); ++rank) {
    if (hosts.insert(world.host(rank)).second) first.push_back(rank);
  }
  return first;
}

}  // namespace rankslice

#include "rankslice/communicator.hpp"

#include <algorithm>
#include <new>
#include <set>
#include <thread>
#include <utility>

#include "comm/host_name.hpp"

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

template <typename SomeError>
[[noreturn]] void raise(SomeError error, Outcome const& agreed) {
  error.file = agreed.file;
  error.tensor = agreed.tensor;
  error.rank = agreed.rank;
  throw error;
}

[[noreturn]] void raise(Outcome const& agreed) {
  switch (agreed.code) {
    case ExitCode::usage:
      raise(UsageError(agreed.message), agreed);
    case ExitCode::difference:
      raise(VerifyError(agreed.message), agreed);
    case ExitCode::bad_data:
      raise(FormatError(agreed.message), agreed);
    case ExitCode::input_missing:
    case ExitCode::cannot_create:
    case ExitCode::io:
      raise(IoError(agreed.code, agreed.message), agreed);
    case ExitCode::unavailable:
      raise(DeviceError(agreed.message), agreed);
    case ExitCode::timeout:
    case ExitCode::bad_launch:
      raise(CommError(agreed.code, agreed.message), agreed);
    case ExitCode::interrupted:
    case ExitCode::terminated:
      raise(Interrupted(agreed.code), agreed);
    case ExitCode::done:
    case ExitCode::unexpected:
      break;
  }
  raise(UnexpectedError(agreed.message), agreed);
}

}  // namespace

std::unique_ptr<Communicator> make_solo_communicator() { return std::make_unique<SoloCommunicator>(); }

void on_every_rank(Communicator& world, std::function<void()> const& step) {
  world.begin_step();
  auto const agreed = world.agree(outcome_of(step));
  if (agreed.code != ExitCode::done) raise(agreed);
}

void broadcast_vector(Communicator& world, std::vector<std::byte>& bytes, int root) {
  std::uint64_t size = bytes.size();
  world.broadcast(std::as_writable_bytes(std::span(&size, 1)), root);
  on_every_rank(world, [&] { bytes.resize(size); });
  world.broadcast(bytes, root);
}

std::vector<std::vector<std::byte>> all_gather(Communicator& world, std::span<std::byte const> bytes) {
  auto everyone = world.gather(bytes, 0);
  std::vector<std::uint64_t> sizes(static_cast<std::size_t>(world.size()));
  std::vector<std::byte> all;
  for (std::size_t rank = 0; rank < everyone.size(); ++rank) {
    sizes[rank] = everyone[rank].size();
    all.insert(all.end(), everyone[rank].begin(), everyone[rank].end());
  }
  world.broadcast(std::as_writable_bytes(std::span(sizes)), 0);
  broadcast_vector(world, all, 0);
  everyone.clear();
  auto next = all.begin();
  for (auto const size : sizes) {
    auto const end = next + static_cast<std::ptrdiff_t>(size);
    everyone.emplace_back(next, end);
    next = end;
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

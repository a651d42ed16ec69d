#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "cli/bench_steps.hpp"
#include "core/literals.hpp"
#include "facts/words.hpp"
#include "plan/plan.hpp"

namespace rankslice::cli {

namespace {

constexpr std::array kRanksToPlan{1, 64, 4096};

// What is said in one call: a few numbers, of which many calls are timed, or a few MiB.
constexpr std::uint64_t kSmallBytes = 64;
constexpr std::uint64_t kLargeBytes = 8_MiB;
constexpr std::uint64_t kSmallCalls = 100;
constexpr std::uint64_t kLargeCalls = 4;

/// Memory for one kind of message, the same for ours and for the limits.
struct Message {
  std::uint64_t calls;
  std::vector<std::byte> bytes, received, all;

  Message(std::uint64_t size, std::uint64_t many, int ranks)
      : calls(many), bytes(size), received(size), all(size * static_cast<std::uint64_t>(ranks)) {}
  [[nodiscard]] std::span<std::uint64_t> words() {
    return {reinterpret_cast<std::uint64_t*>(bytes.data()), bytes.size() / sizeof(std::uint64_t)};
  }
};

/// One kind of call: by our Communicator, and by MPI itself.
struct Call {
  std::string_view name, meaning;
  std::function<void(Message&)> ours, plain;
};

void pass_on(Communicator& world, Message& message) {
  auto const ranks = world.size();
  auto const received = world.start_receive(message.received, (world.rank() + ranks - 1) % ranks);
  auto const sent = world.start_send(message.bytes, (world.rank() + 1) % ranks);
  received->wait();
  sent->wait();
}

std::vector<Call> calls_of(BenchSubject& subject) {
  auto& world = subject.world;
  auto* const mpi = subject.plain_mpi;
  std::vector<Call> calls{{.name = "all_reduce",
                           .meaning = "sums of 64-bit words over all ranks",
                           .ours = [&world](Message& m) { world.all_reduce(m.words(), Reduce::sum); },
                           .plain = [mpi](Message& m) { mpi->all_reduce_sum(m.words()); }},
                          {.name = "broadcast",
                           .meaning = "from rank 0 to all",
                           .ours = [&world](Message& m) { world.broadcast(m.bytes, 0); },
                           .plain = [mpi](Message& m) { mpi->broadcast(m.bytes, 0); }},
                          {.name = "gather",
                           .meaning = "from all ranks to rank 0",
                           .ours = [&world](Message& m) { static_cast<void>(world.gather(m.bytes, 0)); },
                           .plain = [mpi](Message& m) { mpi->gather(m.bytes, m.all, 0); }}};
  if (world.can_send()) {
    calls.push_back({.name = "ring",
                     .meaning = "sent to the next rank, while the one before sends to this one",
                     .ours = [&world](Message& m) { pass_on(world, m); },
                     .plain = [mpi](Message& m) { mpi->pass_on(m.bytes, m.received); }});
  }
  return calls;
}

/// `call` again and again.
Run call_run(std::string name, std::string meaning, std::shared_ptr<Message> const& message,
             std::function<void(Message&)> call) {
  return {.name = std::move(name),
          .meaning = std::move(meaning),
          .bytes = message->bytes.size() * message->calls,
          .count = {.number = message->calls, .of = "call"},
          .collective = true,
          .work = [message, call = std::move(call)] {
            for (std::uint64_t i = 0; i < message->calls; ++i) call(*message);
          }};
}

}  // namespace

Step plan_step(BenchSubject& subject) {
  auto const& model = subject.checkpoint->model;
  auto const form = subject.checkpoint->storage.form;
  Step step{.name = "plan", .runs = {}, .comparisons = {}};
  auto const add = [&](std::string name, std::string meaning, std::function<void()> work) {
    step.runs.push_back({.name = std::move(name),
                         .meaning = std::move(meaning),
                         .count = {.number = model.tensors.size(), .of = "tensor"},
                         .work = std::move(work)});
  };
  for (auto const ranks : kRanksToPlan) {
    add(fmt::format("all of {}", counted(static_cast<std::uint64_t>(ranks), "rank")),
        "the bytes that each of so many ranks reads and holds",
        [&model, form, ranks] { static_cast<void>(plan_all_ranks(model, form, make_mesh(ranks))); });
  }
  auto const most = kRanksToPlan.back();
  add(fmt::format("one of {} ranks", most), "what one of them reads and holds, tensor by tensor", [&model, form, most] {
    auto const mesh = make_mesh(most);
    static_cast<void>(make_load_plan(model, form, mesh, mesh.coordinate(most / 2)));
  });
  for (std::size_t i = 1; i < step.runs.size(); ++i) step.comparisons.push_back({i, 0});
  return step;
}

Step collectives_step(BenchSubject& subject) {
  Step step{.name = "collectives", .runs = {}, .comparisons = {}};
  auto const calls = calls_of(subject);
  for (auto const& [size, times] : {std::pair(kSmallBytes, kSmallCalls), std::pair(kLargeBytes, kLargeCalls)}) {
    auto const message = std::make_shared<Message>(size, times, subject.world.size());
    auto const add = [&](std::string const& name, std::string_view meaning, std::function<void(Message&)> call) {
      step.runs.push_back(
          call_run(fmt::format("{}, {}", name, human_bytes(size)), std::string(meaning), message, std::move(call)));
      return step.runs.size() - 1;
    };
    for (auto const& call : calls) {
      auto const ours = add(std::string(call.name), call.meaning, call.ours);
      step.comparisons.push_back({ours, add("MPI, " + std::string(call.name), "the same by MPI itself", call.plain)});
    }
    if (size == kSmallBytes) continue;  // a call says more about them
    auto const copied = add("memcpy", "as many bytes copied once", [](Message& m) { m.received = m.bytes; });
    for (std::size_t i = copied - 2 * calls.size(); i < copied; i += 2) step.comparisons.push_back({i, copied});
  }
  return step;
}

}  // namespace rankslice::cli

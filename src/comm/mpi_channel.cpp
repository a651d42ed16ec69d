#include "comm/mpi_channel.hpp"

#include <algorithm>
#include <utility>

#include "comm/mpi_check.hpp"

namespace rankslice {
namespace {

constexpr int kControlTag = 1;

}  // namespace

MpiChannel::MpiChannel(MPI_Comm comm) : comm_(comm), under_way_(std::make_unique<UnderWay>()) {
  check_mpi(MPI_Comm_rank(comm, &rank_), comm);
  check_mpi(MPI_Comm_size(comm, &size_), comm);
  under_way_->out.resize(static_cast<std::size_t>(size_));
  under_way_->in.resize(static_cast<std::size_t>(size_));
}

MpiChannel::~MpiChannel() {
  auto const any = [](std::vector<Messages> const& all) {
    return std::any_of(all.begin(), all.end(), [](Messages const& messages) { return !messages.empty(); });
  };
  if (any(under_way_->out) || any(under_way_->in)) static_cast<void>(under_way_.release());
}

void MpiChannel::send(int to, std::vector<std::byte> message) {
  auto& last = under_way_->out[static_cast<std::size_t>(to)].emplace_back(Message{.bytes = std::move(message)});
  check_mpi(MPI_Isend(last.bytes.data(), static_cast<int>(last.bytes.size()), MPI_BYTE, to, kControlTag, comm_,
                      &last.request),
            comm_);
}

bool MpiChannel::sending(int to) {
  auto& messages = under_way_->out[static_cast<std::size_t>(to)];
  while (!messages.empty() && completed(messages.front())) messages.pop_front();
  return !messages.empty();
}

std::optional<ControlArrival> MpiChannel::receive() {
  if (size_ == 1) return std::nullopt;
  start_receiving();
  if (incoming_ == 0) return std::nullopt;
  for (int from = 0; from < size_; ++from) {
    auto& messages = under_way_->in[static_cast<std::size_t>(from)];
    if (messages.empty() || !completed(messages.front())) continue;
    ControlArrival arrival{.from = from, .bytes = std::move(messages.front().bytes)};
    messages.pop_front();
    --incoming_;
    return arrival;
  }
  return std::nullopt;
}

void MpiChannel::start_receiving() {
  while (true) {
    int arrived = 0;
    MPI_Status status;
    check_mpi(MPI_Iprobe(MPI_ANY_SOURCE, kControlTag, comm_, &arrived, &status), comm_);
    if (arrived == 0) return;
    int size = 0;
    check_mpi(MPI_Get_count(&status, MPI_BYTE, &size), comm_);
    auto& message = under_way_->in[static_cast<std::size_t>(status.MPI_SOURCE)].emplace_back(
        Message{.bytes = std::vector<std::byte>(static_cast<std::size_t>(size))});
    ++incoming_;
    check_mpi(MPI_Irecv(message.bytes.data(), size, MPI_BYTE, status.MPI_SOURCE, kControlTag, comm_, &message.request),
              comm_);
  }
}

void MpiChannel::abort(ExitCode code, std::string const& message) { abort_job(comm_, code, message); }

bool MpiChannel::completed(Message& message) const {
  int done = 0;
  check_mpi(MPI_Test(&message.request, &done, MPI_STATUS_IGNORE), comm_);
  return done != 0;
}

}  // namespace rankslice

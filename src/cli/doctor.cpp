#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>
#include <utility>

#include "cli/commands.hpp"
#include "cli/device.hpp"
#include "cli/findings.hpp"
#include "cli/gpu_ranks.hpp"
#include "cli/launch.hpp"
#include "cli/version.hpp"
#include "core/host_name.hpp"
#include "format/hdf5_version.hpp"
#include "io/file.hpp"

namespace rankslice::cli {

namespace {

/// A small file in a folder, for as long as this lives.
class ProbeFile {
 public:
  explicit ProbeFile(std::string const& folder) {
    if (!std::filesystem::is_directory(folder)) return;
    auto const name = fmt::format("{}/.rankslice-doctor-{}-{}", folder, host_name(), ::getpid());
    try {
      auto writer = FileWriter::create(name);
      path_ = name;
      std::vector<std::byte> const bytes(4096);
      writer.write(bytes, 0);
      writer.sync();
      writer.close();
    } catch (Error const& error) {
      why_not_ = error.what();
    }
  }
  ~ProbeFile() {
    if (!path_.empty()) ::unlink(path_.c_str());
  }
  ProbeFile(ProbeFile const&) = delete;
  ProbeFile& operator=(ProbeFile const&) = delete;

  [[nodiscard]] std::string const& path() const { return path_; }
  [[nodiscard]] std::string const& why_not() const { return why_not_; }

 private:
  std::string path_, why_not_;
};

/// "4 ranks on 2 hosts: node1 2, node2 2"
std::string describe_ranks(Communicator const& world) {
  std::map<std::string, int> ranks;
  for (int rank = 0; rank < world.size(); ++rank) ++ranks[world.host(rank)];
  std::string names;
  for (auto const& [host, count] : ranks) names += fmt::format("{}{} {}", names.empty() ? "" : ", ", host, count);
  return fmt::format("{} on {}: {}", counted(static_cast<std::uint64_t>(world.size()), "rank"),
                     counted(ranks.size(), "host"), names);
}

Finding find_launch(Job const& job) {
  auto const env = launch_environment();
  try {
    require_one_job(env, job.world.size(), env.has_mpi);
  } catch (CommError const& error) {
    std::string const what = error.what();
    auto const cause = what.find("Likely cause: ");
    return {.check = "launch", .text = what.substr(0, cause), .advice = what.substr(cause), .code = error.code};
  }
  if (job.world.size() > 1) return {.check = "launch", .text = describe_ranks(job.world)};
  return {.check = "launch", .text = env.has_mpi ? "one rank" : "one process, without a launcher of MPI"};
}

Finding find_mpi(MpiFacts const& mpi) {
  Finding finding{.check = "mpi", .text = mpi.version};
  if (mpi.threads.empty()) return finding;
  finding.text += ", threads: " + mpi.threads;
  if (mpi.threads == "single") {
    finding.advice = "MPI gives no more than one thread; rankslice needs funneled";
    finding.code = ExitCode::bad_launch;
  }
  return finding;
}

Finding find_gpu(Options const& options) {
  auto const gpus = find_gpus();
  if (gpus.count > 0) return {.check = "gpu", .text = fmt::format("{} to be seen", gpus.count)};
  Finding finding{.check = "gpu", .text = "none", .advice = gpus.why_none};
  if (options.device == "cuda") finding.code = ExitCode::unavailable;
  return finding;
}

/// Collective.
Finding find_nccl(Job& job) {
  auto const why_not = why_not_nccl(job.world);
  if (why_not.empty()) return {.check = "nccl", .text = "serves these ranks"};
  Finding finding{.check = "nccl", .text = "not to be had", .advice = why_not};
  if (job.options.comm == "nccl") finding.code = ExitCode::unavailable;
  return finding;
}

/// Whether this host sees the file that the first rank made. `made`: its name there, or nothing. Local.
std::optional<Finding> find_shared(std::string const& path, std::string const& made) {
  if (made.empty() || std::filesystem::exists(made)) return std::nullopt;
  return Finding{.check = "path",
                 .text = fmt::format("{} is another folder here than on the host of rank 0", path),
                 .advice = "outputs need a folder that all hosts see, or to-hf --gather; a checkpoint may be a copy"};
}

std::string from_first_rank(std::string const& text, Communicator& world) {
  auto const bytes = std::as_bytes(std::span(text));
  std::vector<std::byte> shared(bytes.begin(), bytes.end());
  broadcast_vector(world, shared, 0);
  return {reinterpret_cast<char const*>(shared.data()), shared.size()};
}

/// What the hosts find, each by its first rank; on rank 0. Collective.
std::vector<HostFindings> gather_findings(HostFindings const& mine, Communicator& world) {
  auto const text = json_text(pack(mine));
  auto const packed = world.gather(std::as_bytes(std::span(text)), 0);
  std::vector<HostFindings> hosts;
  if (world.rank() != 0) return hosts;
  for (auto const rank : first_ranks_of_hosts(world)) {
    auto const& bytes = packed[static_cast<std::size_t>(rank)];
    auto const* const begin = reinterpret_cast<char const*>(bytes.data());
    hosts.push_back(unpack_findings(Json::parse(begin, begin + bytes.size())));
  }
  return hosts;
}

/// Tell them, and make the worst an error of all ranks. Collective.
void tell_findings(Job& job, std::vector<HostFindings> const& hosts) {
  on_every_rank(job.world, [&] {
    if (hosts.empty()) return;
    job.listed = true;
    print_data(job.options.json ? json_text(findings_json(hosts)) : findings_text(hosts));
    for (auto const& host : hosts) {
      for (auto const& finding : host.findings) {
        if (finding.code == ExitCode::bad_launch) throw CommError(finding.code, "doctor: the launch is wrong");
        if (finding.code == ExitCode::unavailable) throw DeviceError("doctor: what was asked for is not to be had");
        if (finding.code != ExitCode::done) throw IoError(finding.code, "doctor: " + finding.text);
      }
    }
  });
}

}  // namespace

void doctor(Job& job) {
  auto const& options = job.options;
  HostFindings mine{.host = host_name(), .findings = {}};
  auto const add = [&](Finding finding) { mine.findings.push_back(std::move(finding)); };
  add({.check = "rankslice", .text = fmt::format("{}, HDF5 {}", kVersion, hdf5_version())});
  add(find_launch(job));
  add(find_mpi(job.mpi));
  add(find_gpu(options));
  add(find_nccl(job));
  std::ranges::for_each(find_host_limits(), add);
  auto const is_first = std::ranges::count(first_ranks_of_hosts(job.world), job.world.rank()) > 0;
  std::vector<HostFindings> hosts;
  {
    std::vector<std::unique_ptr<ProbeFile>> probes;  // until all hosts have looked
    for (auto const& path : options.paths) {
      auto const& probe = *probes.emplace_back(std::make_unique<ProbeFile>(is_first ? path : ""));
      auto const made = from_first_rank(probe.path(), job.world);
      if (!is_first) continue;
      std::ranges::for_each(find_path(path, probe.path(), probe.why_not()), add);
      if (auto const strange = find_shared(path, made)) add(*strange);
    }
    hosts = gather_findings(mine, job.world);
  }
  tell_findings(job, hosts);
}

}  // namespace rankslice::cli

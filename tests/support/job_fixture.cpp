#include "support/job_fixture.hpp"

#include <mpi.h>

#include <fstream>
#include <iterator>

#include "rankslice/mpi.hpp"

#include "synth/synth.hpp"

namespace rankslice::test {

namespace {

struct CommonFolder {
  std::unique_ptr<Communicator> world;
  std::unique_ptr<TempDir> owner;  // on rank 0
  std::string path;
};

CommonFolder& common() {
  static CommonFolder folder;
  return folder;
}

}  // namespace

void JobTest::SetUpTestSuite() {
  auto& [world, owner, path] = common();
  world = make_mpi_communicator(MPI_COMM_WORLD);
  std::vector<std::byte> name;
  if (world->rank() == 0) {
    owner = std::make_unique<TempDir>();
    auto const text = owner->path().string();
    auto const bytes = std::as_bytes(std::span(text));
    name.assign(bytes.begin(), bytes.end());
    synthesize(owner->file("checkpoint"), {.experts = 7});
  }
  broadcast_vector(*world, name, 0);
  path.assign(reinterpret_cast<char const*>(name.data()), name.size());
}

void JobTest::TearDownTestSuite() {
  on_every_rank(world(), [] {});  // the folder goes when nobody reads it any more
  common().owner.reset();
  common().world.reset();
}

Communicator& JobTest::world() { return *common().world; }

std::string JobTest::path(std::string const& name) { return common().path + "/" + name; }

std::map<std::string, std::vector<char>> files_below(std::filesystem::path const& folder) {
  std::map<std::string, std::vector<char>> files;
  for (auto const& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    std::ifstream stream(entry.path(), std::ios::binary);
    files[std::filesystem::relative(entry.path(), folder).string()] = {std::istreambuf_iterator<char>(stream), {}};
  }
  return files;
}

}  // namespace rankslice::test

#include <fmt/format.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <functional>
#include <initializer_list>
#include <utility>

#include "rankslice/load.hpp"
#include "rankslice/make_state_dict.hpp"

#include "io/huge_pages.hpp"
#include "io/memory.hpp"
#include "plan/plan.hpp"
#include "python/native/arguments.hpp"
#include "python/native/bindings.hpp"
#include "python/native/call.hpp"
#include "python/native/communicator.hpp"
#include "python/native/device.hpp"
#include "state/local_tensor.hpp"

namespace rankslice::python {

namespace {

using Bytes = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::device::cpu>;

/// Fresh host memory side by side, as DLPack tensors of bytes, each of which owns its part.
std::vector<Bytes> allocate(std::vector<std::uint64_t> const& sizes, std::string const& hugepages) {
  std::vector<Bytes> tensors;
  for (auto& memory : allocate_host(sizes, known(parse_huge_pages(hugepages), "hugepages", hugepages))) {
    auto* const buffer = new Buffer(std::move(memory));
    nb::capsule const owner(buffer, [](void* held) noexcept { delete static_cast<Buffer*>(held); });
    tensors.emplace_back(buffer->data.get(), std::initializer_list<std::size_t>{buffer->bytes}, owner);
  }
  return tensors;
}

/// UsageError where the tensors of the host, which have been read, do not stand on huge pages.
void require_state_on_huge_pages(StateDict const& state) {
  std::vector<Buffer> memory;
  for (auto const& [fqn, tensor] : state.tensors) {
    if (!tensor.data.device) memory.push_back(tensor.data);
  }
  require_on_huge_pages(memory);
}

/// A tensor of Python's: what the rank has of it, in memory that `owner` keeps alive.
LocalTensor local_tensor(std::string const& dtype, Shape const& global_shape, Shape const& offsets,
                         Shape const& local_shape, std::uintptr_t address, std::uint64_t bytes, nb::object const& owner,
                         std::shared_ptr<TorchDevice> const& device) {
  auto const parsed = parse_dtype(dtype);
  if (!parsed) throw UsageError("there is no dtype " + dtype);
  auto const held = without_gil(owner);
  return {.dtype = *parsed,
          .global_shape = global_shape,
          .data = {.data = {held, reinterpret_cast<std::byte*>(address)}, .bytes = bytes, .device = device},
          .offsets = offsets,
          .local_shape = local_shape};
}

/// What a rank of a mesh holds of every tensor, in the order of `Checkpoint.parameters`: (offsets, local shape).
std::vector<std::pair<Shape, Shape>> held(Checkpoint const& checkpoint, Mesh const& mesh, int rank) {
  std::vector<std::pair<Shape, Shape>> places;
  auto const plan = make_load_plan(checkpoint.model, checkpoint.storage.form, mesh, mesh.coordinate(rank));
  for (auto const& planned : plan.slices) {
    auto const tensor = place_local_tensor(checkpoint.model.parameters[planned.parameter], planned, mesh);
    places.emplace_back(tensor.offsets, tensor.local_shape);
  }
  return places;
}

std::uint64_t bytes_owned(StateDict const& state) {
  std::uint64_t bytes = 0;
  for (auto const& [fqn, tensor] : state.tensors) bytes += tensor.data.bytes;
  return bytes;
}

/// Digests of one part more of what the same rank reads.
void add(Digests& sum, Digests const& part) {
  auto const add_table = [](DigestTable& table, DigestTable const& more) {
    std::ranges::transform(table.values(), more.values(), table.values().begin(), std::plus());
  };
  add_table(sum.source, part.source);
  add_table(sum.stored, part.stored);
}

/// A state dict without a checkpoint; `folder` has config.json, tokenizer, …, or is empty.
std::shared_ptr<StateDict> make_fresh_state(std::map<std::string, LocalTensor> const& tensors, Mesh const& mesh,
                                            int rank, std::string const& family, std::string const& expert_layout,
                                            std::optional<std::string> const& mtp_experts, std::string const& folder,
                                            bool partial, std::uint64_t max_file_bytes) {
  StateOptions options{.family = family, .partial = partial, .max_file_bytes = max_file_bytes};
  options.expert_layout = known(parse_expert_layout(expert_layout), "expert_layout", expert_layout);
  if (mtp_experts) options.mtp_experts = known(parse_expert_form(*mtp_experts), "mtp_experts", *mtp_experts);
  if (!folder.empty()) options.side_files = side_files_in(folder);
  return std::make_shared<StateDict>(make_state_dict(tensors, mesh, mesh.coordinate(rank), options));
}

/// What this rank read, and what it received, in bytes.
std::pair<std::uint64_t, std::uint64_t> fill_state(StateDict& state, World const& world, std::string const& verify,
                                                   std::string const& dense, std::string const& io,
                                                   std::string const& cache, int threads, nb::object const& progress) {
  Call call(progress);
  auto options_of_call = call.options();
  options_of_call.reading = {.backend = known(parse_read_backend(io), "io", io),
                             .cache = known(parse_page_cache(cache), "cache", cache)};
  options_of_call.threads = threads;
  FillOptions const options{.verify = known(parse_verify_level(verify), "verify", verify),
                            .dense = known(parse_dense_reading(dense), "dense", dense),
                            .call = options_of_call};
  auto const report = call.run([&] { return world ? fill(state, *world, options) : fill(state, options); });
  return {report.bytes_read, report.bytes_received};
}

}  // namespace

void bind_state(nb::module_& module) {
  nb::class_<Mesh>(module, "Mesh")
      .def(
          "__init__",
          [](Mesh* mesh, int ep_replicate, int ep_shard, int ep) {
            new (mesh) Mesh{ep_replicate, ep_shard, ep};
          },
          nb::arg("ep_replicate"), nb::arg("ep_shard"), nb::arg("ep"))
      .def_ro("ep_replicate", &Mesh::ep_replicate)
      .def_ro("ep_shard", &Mesh::ep_shard)
      .def_ro("ep", &Mesh::ep)
      .def_prop_ro("ranks", &Mesh::ranks)
      .def("__repr__", [](Mesh const& mesh) {
        return fmt::format("<Mesh ep_replicate={} ep_shard={} ep={}>", mesh.ep_replicate, mesh.ep_shard, mesh.ep);
      });
  module.def("make_mesh", &make_mesh, nb::arg("ranks"), nb::arg("ep"), nb::arg("ep_shard"));
  module.def("held", &held, nb::arg("checkpoint"), nb::arg("mesh"), nb::arg("rank"));
  module.def("allocate", &allocate, nb::arg("sizes"), nb::arg("hugepages"));
  module.def("require_on_huge_pages", &require_state_on_huge_pages, nb::arg("state"));

  nb::class_<LocalTensor>(module, "LocalTensor");
  module.def("local_tensor", &local_tensor, nb::arg("dtype"), nb::arg("global_shape"), nb::arg("offsets"),
             nb::arg("local_shape"), nb::arg("address"), nb::arg("bytes"), nb::arg("owner"), nb::arg("device").none());
  nb::class_<Digests>(module, "Digests").def("add", &add, nb::arg("part"));
  nb::class_<StateDict>(module, "StateDict")
      .def_prop_ro("bytes_owned", &bytes_owned)
      .def_rw("read", &StateDict::read)
      .def_ro("mesh", &StateDict::mesh)
      .def_prop_ro("source", [](StateDict const& state) { return state.source; });
  module.def(
      "make_state_dict",
      [](std::shared_ptr<Checkpoint const> const& source, std::map<std::string, LocalTensor> const& tensors,
         Mesh const& mesh, int rank) {
        return std::make_shared<StateDict>(make_state_dict(source, tensors, mesh, mesh.coordinate(rank)));
      },
      nb::arg("source"), nb::arg("tensors"), nb::arg("mesh"), nb::arg("rank"));
  module.def("make_fresh_state_dict", &make_fresh_state, nb::arg("tensors"), nb::arg("mesh"), nb::arg("rank"),
             nb::arg("family"), nb::arg("expert_layout"), nb::arg("mtp_experts").none(), nb::arg("folder"),
             nb::arg("partial"), nb::arg("max_file_bytes"));
  module.def("fill", &fill_state, nb::arg("state"), nb::arg("world").none(), nb::arg("verify"), nb::arg("dense"),
             nb::arg("io"), nb::arg("cache"), nb::arg("threads"), nb::arg("progress").none());
}

}  // namespace rankslice::python

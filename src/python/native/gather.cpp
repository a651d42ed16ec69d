#include "rankslice/gather.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <optional>
#include <string>

#include "python/native/arguments.hpp"
#include "python/native/bindings.hpp"
#include "python/native/call.hpp"
#include "python/native/communicator.hpp"

namespace rankslice::python {

namespace {

std::optional<Receivers> parse_receivers(std::string const& name) {
  if (name == "one") return Receivers::one_rank;
  if (name == "hosts") return Receivers::first_ranks_of_hosts;
  return name == "all" ? std::optional(Receivers::all_ranks) : std::nullopt;
}

/// Puts blocks together to tensors in memory of Python's.
class Assembly {
 public:
  /// `consumer`: has room_for(key, dtype, shape), which gives an address, or None where there is none yet, and then
  /// waits for it for a moment; and finish(), which takes the tensor.
  Assembly(nb::object const& consumer, Call& call, Communicator& world)
      : room_for_(without_gil(consumer.attr("room_for"))),
        finish_(without_gil(consumer.attr("finish"))),
        call_(call),
        world_(world) {}

  void add(HfBlock const& block) {
    if (block.bytes.begin == 0) tensor_ = make_room(block.tensor);
    if (!block.data.empty()) std::memcpy(tensor_ + block.bytes.begin, block.data.data(), block.data.size());
    if (block.last) call_.with_gil([&] { (*finish_)(); });
  }

 private:
  std::byte* make_room(HfTensor const& tensor) {
    std::optional<std::uintptr_t> address;
    while (!address) {
      world_.progress();  // the others wait for this rank
      call_.with_gil([&] {
        auto const room = (*room_for_)(tensor.key, std::string(name(tensor.dtype)), tensor.shape);
        if (!room.is_none()) address = nb::cast<std::uintptr_t>(room);
      });
    }
    return reinterpret_cast<std::byte*>(*address);
  }

  std::shared_ptr<nb::object> room_for_, finish_;
  Call& call_;
  Communicator& world_;
  std::byte* tensor_ = nullptr;
};

void gather_to(nb::object const& consumer, StateDict const& state, World const& world, std::string const& receivers,
               int rank, std::string const& include, std::string const& exclude, std::string const& layout,
               std::string const& gdn_dtype, int threads) {
  Call call(consumer.attr("look"));
  GatherOptions const options{.receivers = known(parse_receivers(receivers), "receivers", receivers),
                              .rank = rank,
                              .keys = key_selection(include, exclude),
                              .layout = known(parse_export_layout(layout), "layout", layout),
                              .gdn_dtype = known(parse_gdn_dtype(gdn_dtype), "gdn_dtype", gdn_dtype),
                              .call = call.options(threads)};
  Assembly assembly(consumer, call, *world);
  call.run([&] { gather(state, *world, options, [&](HfBlock const& block) { assembly.add(block); }); });
}

}  // namespace

void bind_gather(nb::module_& module) {
  module.def("gather", &gather_to, nb::arg("consumer"), nb::arg("state"), nb::arg("world"), nb::arg("receivers"),
             nb::arg("rank"), nb::arg("include"), nb::arg("exclude"), nb::arg("layout"), nb::arg("gdn_dtype"),
             nb::arg("threads") = 0);
}

}  // namespace rankslice::python

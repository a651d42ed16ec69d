#pragma once

#include <cstdint>
#include <vector>

#include "rankslice/buffer.hpp"
#include "rankslice/device.hpp"
#include "rankslice/digest.hpp"
#include "rankslice/parameter.hpp"

namespace rankslice {

/// Some elements that a device digests, and whose they are.
struct TensorBox {
  std::uint32_t tensor = 0;       ///< In `Model::tensors`.
  std::uint64_t first_entry = 0;  ///< Of that tensor's digests, for the box's first entry.
  DigestBox box;
};

/// The elements of a slice in the native form, [part, rows, columns] from `data` on, by the HF tensors that they are
/// of.
[[nodiscard]] std::vector<TensorBox> boxes_of(Model const& model, Parameter const& parameter, Slice const& slice,
                                              std::byte const* data);

/// Add what `ParameterDigest::add_native` would of a slice that is in device memory, where that is computed: in
/// `stored` for converted parameters. @throws DeviceError
void add_native_on_device(Model const& model, Parameter const& parameter, Slice const& slice, Buffer const& memory,
                          Digests& digests);

}  // namespace rankslice

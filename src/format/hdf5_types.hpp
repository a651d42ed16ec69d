#pragma once

#include "rankslice/dtype.hpp"
#include "rankslice/tensor_catalog.hpp"

#include "format/hdf5_calls.hpp"

// How tensors appear in HDF5. Floats of 2, 4 and 8 bytes and integers are numbers of their own type, little-endian
// (BF16 is a float of 8 exponent and 7 mantissa bits). Everything else is bytes (U8): BOOL and the 8-bit floats one per
// element; C64 with an extra last axis of 8; sub-byte types as the one axis of their bytes, the shape beside them in an
// attribute. The attribute `safetensors_dtype` says which it is.
namespace rankslice::hdf5 {

[[nodiscard]] UniqueDatatype element_type(DType dtype, Subject const& subject);

/// The axes of the dataset that holds a tensor.
[[nodiscard]] Shape dataset_shape(DType dtype, Shape const& shape);

/// Create the dataset of a tensor, with its attributes.
[[nodiscard]] UniqueDataset create_tensor(hid_t parent, DType dtype, Shape const& shape, Subject const& subject);

struct TensorForm {
  DType dtype = DType::U8;
  Shape shape;
  std::uint64_t bytes = 0;
};

/// The tensor that a dataset holds.
/// @throws FormatError when type and axes are not those that `create_tensor` gives this dtype and shape.
[[nodiscard]] TensorForm tensor_form(UniqueDataset const& dataset, Subject const& subject);

}  // namespace rankslice::hdf5

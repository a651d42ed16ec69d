#include "format/hdf5_types.hpp"

#include <fmt/format.h>

#include "rankslice/error.hpp"

#include "core/checked.hpp"
#include "format/hdf5_names.hpp"

namespace rankslice::hdf5 {

namespace {

/// A float of 2 bytes: sign in the top bit, then exponent, then mantissa.
UniqueDatatype two_byte_float(std::size_t exponent_bits, std::size_t mantissa_bits, std::size_t bias,
                              Subject const& subject) {
  auto type = copy_type(H5T_IEEE_F32LE, subject);
  // The fields first: HDF5 does not shrink a type below the fields it has.
  checked(H5Tset_fields(type.get(), 15, mantissa_bits, exponent_bits, 0, mantissa_bits), "H5Tset_fields", subject);
  checked(H5Tset_precision(type.get(), 16), "H5Tset_precision", subject);
  checked(H5Tset_size(type.get(), 2), "H5Tset_size", subject);
  checked(H5Tset_ebias(type.get(), bias), "H5Tset_ebias", subject);
  return type;
}

DType recorded_dtype(UniqueDataset const& dataset, Subject const& subject) {
  auto const text = read_text(dataset.get(), kDTypeAttribute, subject);
  auto const dtype = parse_dtype(text);
  if (!dtype) refuse(subject, fmt::format("attribute '{}' is '{}', no dtype of safetensors", kDTypeAttribute, text));
  return *dtype;
}

/// The shape of the tensor for which `dataset_shape` gives these axes, if there is one.
Shape tensor_shape(UniqueDataset const& dataset, DType dtype, Shape axes, Subject const& subject) {
  if (sub_byte(dtype)) return read_numbers(dataset.get(), kShapeAttribute, subject);
  if (dtype == DType::C64 && !axes.empty()) axes.pop_back();
  return axes;
}

}  // namespace

UniqueDatatype element_type(DType dtype, Subject const& subject) {
  switch (dtype) {
    case DType::F16:
      return two_byte_float(5, 10, 15, subject);
    case DType::BF16:
      return two_byte_float(8, 7, 127, subject);
    case DType::F32:
      return copy_type(H5T_IEEE_F32LE, subject);
    case DType::F64:
      return copy_type(H5T_IEEE_F64LE, subject);
    case DType::I8:
      return copy_type(H5T_STD_I8LE, subject);
    case DType::I16:
      return copy_type(H5T_STD_I16LE, subject);
    case DType::U16:
      return copy_type(H5T_STD_U16LE, subject);
    case DType::I32:
      return copy_type(H5T_STD_I32LE, subject);
    case DType::U32:
      return copy_type(H5T_STD_U32LE, subject);
    case DType::I64:
      return copy_type(H5T_STD_I64LE, subject);
    case DType::U64:
      return copy_type(H5T_STD_U64LE, subject);
    default:
      return copy_type(H5T_STD_U8LE, subject);
  }
}

Shape dataset_shape(DType dtype, Shape const& shape) {
  if (sub_byte(dtype)) return {byte_size(dtype, shape)};
  auto axes = shape;
  if (dtype == DType::C64) axes.push_back(element_bytes(dtype));
  return axes;
}

UniqueDataset create_tensor(hid_t parent, DType dtype, Shape const& shape, Subject const& subject) {
  auto dataset = create_dataset(parent, element_type(dtype, subject), dataset_shape(dtype, shape), subject);
  write_text(dataset.get(), kDTypeAttribute, name(dtype), subject);
  if (sub_byte(dtype)) write_numbers(dataset.get(), kShapeAttribute, shape, subject);
  return dataset;
}

TensorForm tensor_form(UniqueDataset const& dataset, Subject const& subject) {
  auto const dtype = recorded_dtype(dataset, subject);
  if (!same_type(type_of(dataset, subject), element_type(dtype, subject), subject)) {
    refuse(subject,
           fmt::format("attribute '{}' is '{}', but the elements are of another type", kDTypeAttribute, name(dtype)));
  }
  auto const axes = shape_of(dataset, subject);
  auto const shape = tensor_shape(dataset, dtype, axes, subject);
  auto const bytes = checked_byte_size(dtype, shape);
  if (!bytes) refuse(subject, fmt::format("the bytes of {} {} cannot be counted", name(dtype), to_string(shape)));
  auto const expected = dataset_shape(dtype, shape);
  if (axes != expected) {
    refuse(subject, fmt::format("expected axes {} for {} {}, found {}", to_string(expected), name(dtype),
                                to_string(shape), to_string(axes)));
  }
  return {dtype, shape, *bytes};
}

}  // namespace rankslice::hdf5

#include "rankslice/torch.hpp"

#include <ATen/Context.h>
#include <ATen/ops/from_blob.h>

#include <array>
#include <optional>
#include <utility>

#include "rankslice/device.hpp"
#include "rankslice/error.hpp"

namespace rankslice {

namespace {

std::optional<at::ScalarType> scalar_type(DType dtype) {
  switch (dtype) {
    case DType::BOOL:
      return at::kBool;
    case DType::U8:
      return at::kByte;
    case DType::I8:
      return at::kChar;
    case DType::F8_E5M2:
      return at::kFloat8_e5m2;
    case DType::F8_E4M3:
      return at::kFloat8_e4m3fn;
    case DType::F8_E8M0:
      return at::kFloat8_e8m0fnu;
    case DType::F8_E4M3FNUZ:
      return at::kFloat8_e4m3fnuz;
    case DType::F8_E5M2FNUZ:
      return at::kFloat8_e5m2fnuz;
    case DType::I16:
      return at::kShort;
    case DType::U16:
      return at::kUInt16;
    case DType::F16:
      return at::kHalf;
    case DType::BF16:
      return at::kBFloat16;
    case DType::I32:
      return at::kInt;
    case DType::U32:
      return at::kUInt32;
    case DType::F32:
      return at::kFloat;
    case DType::C64:
      return at::kComplexFloat;
    case DType::F64:
      return at::kDouble;
    case DType::I64:
      return at::kLong;
    case DType::U64:
      return at::kUInt64;
    case DType::F4:
    case DType::F6_E2M3:
    case DType::F6_E3M2:
      return std::nullopt;
  }
  return std::nullopt;
}

/// Where a tensor's memory is, for LibTorch.
at::Device device_of(ShardedTensor const& tensor) {
  auto const& device = tensor.data.device;
  if (!device) return at::kCPU;
  if (device->kind() == "cuda" && at::hasCUDA()) return {at::kCUDA, static_cast<at::DeviceIndex>(device->index())};
  auto const why = device->kind() == "cuda" ? "finds no CUDA: link LibTorch::cuda" : "does not know it";
  throw DeviceError(tensor.parameter.fqn + ": lies on " + device->name() + ", and this program's LibTorch " + why);
}

}  // namespace

at::Tensor as_tensor(ShardedTensor const& tensor) {
  auto const type = scalar_type(tensor.parameter.dtype);
  if (!type) {
    throw PlanError(
        tensor.parameter.fqn + ": LibTorch has no element type for " + std::string(name(tensor.parameter.dtype)),
        tensor.parameter.fqn);
  }
  auto const device = device_of(tensor);
  std::vector<std::int64_t> const sizes(tensor.local_shape.begin(), tensor.local_shape.end());
  auto owner = tensor.data.data;  // the deleter's copy keeps the memory alive as long as the tensor
  auto* const data = owner.get();
  return at::from_blob(
      data, sizes, [owner = std::move(owner)](void*) {}, at::TensorOptions(*type).device(device), device);
}

std::map<std::string, at::Tensor> as_tensors(StateDict const& state) {
  std::map<std::string, at::Tensor> tensors;
  for (auto const& [fqn, tensor] : state.tensors) tensors.emplace(fqn, as_tensor(tensor));
  return tensors;
}

}  // namespace rankslice

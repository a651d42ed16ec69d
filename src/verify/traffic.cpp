#include "verify/traffic.hpp"

#include <algorithm>

#include "transform/tensor_digest.hpp"

namespace rankslice {

std::uint64_t VerifyTraffic::wire_bytes(int ranks) const {
  if (ranks <= 1) return 0;
  auto const n = static_cast<std::uint64_t>(ranks);
  return 2 * summed * (n - 1) / n + sent;
}

VerifyTraffic verify_traffic(Model const& model, VerifyLevel level) {
  VerifyTraffic traffic;
  if (!digests(level)) return traffic;
  std::uint64_t all = 0, stacked = 0;  // numbers of a digest table
  for (auto const& tensor : model.tensors) {
    auto const entries = TensorDigest::entries(tensor.dtype, tensor.shape);
    all += entries;
    if (model.parameters[tensor.parameter].stacked_experts) stacked += entries;
  }
  constexpr std::uint64_t kNumber = sizeof(std::uint64_t);
  auto const tables = converts(model) ? std::uint64_t{2} : 1;
  traffic.summed = tables * stacked * kNumber;
  if (level == VerifyLevel::reread) traffic.sent = tables * all * kNumber;
  return traffic;
}

bool converts(Model const& model) { return std::ranges::any_of(model.parameters, &Parameter::converted); }

}  // namespace rankslice

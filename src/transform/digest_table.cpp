#include <numeric>

#include "rankslice/digest.hpp"

#include "transform/tensor_digest.hpp"

namespace rankslice {

DigestTable::DigestTable(std::vector<HfTensor> const& tensors) {
  first_.reserve(tensors.size() + 1);
  first_.push_back(0);
  for (auto const& tensor : tensors) {
    first_.push_back(first_.back() + TensorDigest::entries(tensor.dtype, tensor.shape));
  }
  values_.resize(first_.back());
}

std::span<std::uint64_t> DigestTable::of(std::size_t tensor) {
  return std::span(values_).subspan(first_[tensor], first_[tensor + 1] - first_[tensor]);
}

std::span<std::uint64_t const> DigestTable::of(std::size_t tensor) const {
  return std::span(values_).subspan(first_[tensor], first_[tensor + 1] - first_[tensor]);
}

std::uint64_t DigestTable::sum(std::size_t tensor) const {
  auto const entries = of(tensor);
  return std::accumulate(entries.begin(), entries.end(), std::uint64_t{0});
}

}  // namespace rankslice

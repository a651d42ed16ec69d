#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "format/safetensors.hpp"

namespace rankslice {

/// The keys below one prefix, appended to a list.
class Module {
 public:
  Module(std::vector<SafetensorsHeader::Tensor>& tensors, std::string prefix)
      : tensors_(tensors), prefix_(std::move(prefix)) {}

  void add(std::string_view key, Shape shape, DType dtype = DType::BF16) const {
    tensors_.push_back({prefix_ + std::string(key), dtype, std::move(shape), {}});
  }

  /// `key`.weight, and `key`.bias with the sizes of its first axis.
  void add_with_bias(std::string const& key, Shape shape) const {
    auto const outputs = shape.front();
    add(key + ".weight", std::move(shape));
    add(key + ".bias", {outputs});
  }

  [[nodiscard]] Module child(std::string_view name) const { return {tensors_, prefix_ + std::string(name) + "."}; }

 private:
  std::vector<SafetensorsHeader::Tensor>& tensors_;
  std::string prefix_;
};

}  // namespace rankslice

#pragma once

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "model/key_table.hpp"

namespace rankslice {

/// @throws FormatError unless a tensor can be stacked experts of so many matrices side by side, none of them empty
void require_stackable(NativeTensor const& native, std::uint64_t matrices);

/// All experts of a stacked parameter of the native shape `shape`, in one tensor. Dtype and parameter stay to be said.
[[nodiscard]] HfTensor grouped_tensor(std::string key, Shape shape, Layout layout);

/// Some of its experts, one after the other, gate before up (rule 45). `fqn` is spelled as the keys. Likewise.
[[nodiscard]] std::vector<HfTensor> split_tensors(StackedRule const& rule, std::string_view fqn, Shape const& shape,
                                                  Range const& experts);

/// The keys of a checkpoint that is put together.
class DistinctKeys {
 public:
  /// @throws FormatError when the tensor of another parameter has the key
  void add(std::string const& key, std::string const& fqn);

 private:
  std::unordered_map<std::string, std::string> fqn_of_;
};

}  // namespace rankslice

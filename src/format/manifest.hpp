#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "rankslice/error.hpp"
#include "rankslice/tensor_catalog.hpp"

namespace rankslice {

/// Largest manifest that is read: that of a million experts takes a tenth of it.
inline constexpr std::uint64_t kMaxManifestBytes = std::uint64_t{256} << 20;

/// `rankslice.manifest/1`: what the files of a checkpoint were when somebody wrote it down.
struct Manifest {
  struct File {
    std::string name;
    std::uint64_t size = 0;
    std::string header;  ///< XXH3-128 of length field, JSON and padding, 32 hex digits.
    bool operator==(File const&) const = default;
  };
  struct Tensor {
    std::string key;
    DType dtype = DType::BF16;
    Shape shape;
    std::vector<std::uint64_t> digests;  ///< [sum, d(0), d(1), …], or [sum] for rank < 3.
    bool operator==(Tensor const&) const = default;
  };

  std::string created_by;
  std::vector<File> files;      ///< By name.
  std::string index_name;       ///< Empty without an index.
  std::string index;            ///< XXH3-128 of its bytes.
  std::vector<Tensor> tensors;  ///< By key.
  bool operator==(Manifest const&) const = default;
};

/// The JSON text, one line for each file and tensor. @throws FormatError for a name that is not UTF-8
[[nodiscard]] std::string to_text(Manifest const& manifest, std::string const& path);

/// A manifest that another version of rankslice has written, and that this one cannot read.
class OtherManifestVersion : public FormatError {
 public:
  using FormatError::FormatError;
};

/// The inverse. What it does not know is ignored; names given twice, digests that are not as many as the shape says or
/// do not add up are refused. `path` names the manifest in errors. @throws FormatError; OtherManifestVersion
[[nodiscard]] Manifest parse_manifest(std::string_view text, std::string const& path);

}  // namespace rankslice

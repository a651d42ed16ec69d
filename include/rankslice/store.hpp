#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "rankslice/options.hpp"
#include "rankslice/state_dict.hpp"

namespace rankslice {

/// The same on every rank.
struct SaveOptions {
  bool overwrite = false;  ///< Replace what exists under the final name, in one step at the end.
  /// For `save_store`: when it is stopped or killed leave what is written, and go on with what an earlier call for the
  /// same values left. Without it nothing stays of a call that throws.
  bool resume = false;
  CallOptions call{};
};

struct SaveReport {
  std::uint64_t bytes_written = 0;  ///< Tensor bytes that this rank wrote.
  std::optional<Resumed> resumed{};
};

/// Everything in a store but the tensor bytes.
struct StoreContents {
  struct Tensor {
    std::string fqn;
    DType dtype = DType::BF16;  ///< As stored.
    Shape shape;                ///< Global, native.
    std::uint64_t offset = 0;   ///< Of its first byte in the file.
  };
  struct RecordedDigest {
    std::string hf_key;
    std::vector<std::uint64_t> values;  ///< [sum, d(0), d(1), …], or [sum] for tensors of rank < 3
    bool operator==(RecordedDigest const&) const = default;
  };

  std::string family;
  std::uint64_t file_size = 0;
  std::vector<Tensor> tensors;         ///< By FQN.
  HfLayout hf;                         ///< Side files point into the store.
  std::vector<RecordedDigest> source;  ///< By HF key.
  std::vector<RecordedDigest> stored;  ///< Converted tensors only.
};

/// What `open_checkpoint` needs to open native stores: the link from `rankslice::core` to `rankslice::hdf5`.
class StoreFormat {
 public:
  virtual ~StoreFormat() = default;
  /// Read everything but the tensor bytes. Local.
  /// @throws FormatError for a store that is incomplete, damaged, or uses storage that has no fixed address.
  [[nodiscard]] virtual StoreContents read(std::string const& path) const = 0;
  /// Whether the file begins like one. Local.
  [[nodiscard]] virtual bool recognises(std::string const& path) const = 0;
};

/// The native HDF5 store (`native/1`). In `rankslice::hdf5`.
[[nodiscard]] StoreFormat const& native_store();

/// For programs that close what they open, before they use HDF5 at all: do not let it close itself down at exit, which
/// HDF5 1.10 turns into a line on stderr once it has refused a damaged file. In `rankslice::hdf5`.
void disable_hdf5_exit_handler();

/// Write a state dict to one HDF5 file: rank 0 makes the metadata, all ranks write their parts at the addresses it
/// shares; checked by reading back and renamed when complete. In `rankslice::hdf5`. Collective, with the same options
/// on every rank.
/// @throws IoError (`cannot_create` when `path` exists and `overwrite` is not set); PlanError and VerifyError as
/// `to_hf`
SaveReport save_store(StateDict const& state, std::string const& path, Communicator& world,
                      SaveOptions const& options = {});

}  // namespace rankslice

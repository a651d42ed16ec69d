#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "rankslice/checkpoint.hpp"
#include "rankslice/mesh.hpp"

namespace rankslice {

/// How a Hugging Face checkpoint holds the experts of a layer.
enum class ExpertKeys : std::uint8_t {
  grouped,    ///< All experts in one tensor for each projection.
  split,      ///< Each expert's matrices in tensors of their own.
  split_fp8,  ///< The same as F8_E4M3, each with its block scales (rule 4).
};

/// How the Hugging Face checkpoint holds what it may hold in several ways. What is not said is as the opened checkpoint
/// has it, or else as the family's releases on the Hub: grouped, or in Qwen3-MoE and Qwen3-Next split.
struct HfForms {
  std::optional<ExpertKeys> decoder_experts{};
  std::optional<ExpertKeys> mtp_experts{};
  ExpertLayout expert_layout = ExpertLayout::automatic;  ///< Of grouped experts (rule 61).
};

/// A tensor of the Hugging Face checkpoint from which a rank fills a native tensor, or as which that would be written.
struct LoadDestination {
  std::string key;
  DType dtype = DType::BF16;
  Shape shape;             ///< Global.
  Shape offsets;           ///< Of the rank's part, per axis, …
  Shape local_shape;       ///< … and its shape.
  std::string fqn;         ///< Of the native tensor …
  Range experts{0, 1};     ///< … and what of it the whole tensor is: along native axis 0 of stacked experts …
  Range columns{0, 1};     ///< … and along native axis 2.
  bool is_scales = false;  ///< The block scales of that part.
};

struct DestinationOptions {
  HfForms forms{};
  Mesh mesh{};  ///< One rank, which has all experts, unless said otherwise.
  MeshCoordinate coordinate{};
  /// Experts that are `split_fp8` as codes and block scales (rule 50). Without it those of the decoder are as in the
  /// family's unquantised releases and those of MTP split, in their native dtype. Experts that are not `split_fp8` are
  /// the same with it and without it.
  bool quantization = false;
  KeySelection keys{};  ///< Each key by itself (rule 25); all when empty.
};

/// The Hugging Face tensors that one rank's native tensors are filled from: names, dtypes and shapes, before there are
/// any values (rules 24, 44-50). In the order of `tensors`; of split experts the rank's own, one after the other, gate
/// before up; the block scales of the decoder behind their weight, BF16 and whole on every rank, those of MTP before
/// it, F32 and sharded as it is. Parameters that training keeps in F32 are F32 (rule 55). Names that the family does
/// not know pass through, and those that contain `_extra_state` are left out. Pure.
/// @throws UsageError for an unknown family; FormatError for stacked experts of the wrong axes, and for names that meet
/// in one key; PlanError for a coordinate outside the mesh, rows that `ep_shard` does not divide, and where it cuts
/// blocks of quantised MTP experts
[[nodiscard]] std::vector<LoadDestination> load_destinations(std::string_view family,
                                                             std::vector<NativeTensor> const& tensors,
                                                             DestinationOptions const& options = {});

/// The same for what a state dict of a checkpoint has, under keys spelled as in the checkpoint. Pure. @throws as above
[[nodiscard]] std::vector<LoadDestination> load_destinations(Checkpoint const& checkpoint,
                                                             DestinationOptions const& options = {});

/// The keys under which a whole model is written (rule 52): those of its load destinations without quantization.
/// Pure. @throws as above
[[nodiscard]] std::vector<std::string> hf_keys(std::string_view family, std::vector<NativeTensor> const& tensors,
                                               HfForms const& forms = {});

/// Rule 56: the dtypes that an export must have whatever a reference checkpoint says, by the names given, which may be
/// FQNs or HF keys: F32 for floating parameters that training keeps in it. Pure. @throws UsageError for an unknown
/// family
[[nodiscard]] std::map<std::string, DType> forced_hf_dtypes(std::string_view family,
                                                            std::vector<NativeTensor> const& tensors);

}  // namespace rankslice

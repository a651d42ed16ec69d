#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "rankslice/communicator.hpp"
#include "rankslice/digest.hpp"
#include "rankslice/parameter.hpp"
#include "rankslice/tensor_catalog.hpp"

namespace rankslice {

enum class CheckpointFormat : std::uint8_t {
  huggingface,
  store,
  shards,
  state,  ///< No checkpoint but a state dict without one (`make_state_dict`); has no bytes of its own.
};

/// One safetensors file of the Hugging Face checkpoint: everything of it but the tensor bytes.
struct HfFile {
  std::string name;
  std::uint64_t size = 0;         ///< Of the whole file.
  std::vector<std::byte> header;  ///< Length field, JSON and padding, as in the file.
  std::int64_t modified_ns = 0;   ///< Time of its last change when the header was read; 0 when not known.
};

/// A file that is carried along unread: tokenizer, config.json, …
struct SideFile {
  std::string name;
  std::uint64_t size = 0;
  /// Of the file that holds the bytes: itself, or a store. Empty of a config.json that has been edited: its bytes are
  /// `HfLayout::config`.
  std::string path;
  std::uint64_t offset = 0;      ///< Of the first byte there.
  std::string checksum;          ///< XXH3-128 of the bytes; empty when not known.
  std::int64_t modified_ns = 0;  ///< Time of the file's last change when the checkpoint was opened; 0 when not known.
};

/// Whose headers and index a Hugging Face checkpoint gets. Fresh ones are made as safetensors and huggingface_hub do.
enum class HeaderOrigin : std::uint8_t {
  source,     ///< Those of the files that were opened, byte for byte.
  selection,  ///< Fresh: some of the tensors were left out.
  converted,  ///< Fresh: values were dequantised, or are of another dtype.
  state,      ///< Fresh: there is no source, or none any more (shards that have outlived theirs).
};

/// "source", "selection", …
[[nodiscard]] std::string_view name(HeaderOrigin origin);
/// The inverse of `name`; nothing for an unknown one.
[[nodiscard]] std::optional<HeaderOrigin> parse_header_origin(std::string_view name);
/// Why headers are fresh, in a few words; empty for those of a source.
[[nodiscard]] std::string_view why_fresh(HeaderOrigin origin);

/// Tensor bytes at which a fresh checkpoint starts a new file, as huggingface_hub does unless told otherwise.
inline constexpr std::uint64_t kMaxFileBytes = 5'000'000'000;

/// What is needed, beside the tensor bytes, to write the Hugging Face checkpoint byte for byte.
struct HfLayout {
  HeaderOrigin headers = HeaderOrigin::source;
  std::vector<HfFile> files;          ///< By name.
  std::string index_name;             ///< Empty when there is no index.
  std::vector<std::byte> index;       ///< The raw index.
  std::vector<std::byte> config;      ///< The raw config.json; empty when there is none. Also a side file.
  std::vector<SideFile> side_files;   ///< By name.
  std::vector<std::string> left_out;  ///< Files of the folder that are not carried along.
};

/// A slice of one parameter, contiguous in one file: in the HF form one tensor of the checkpoint.
struct StoredPiece {
  std::uint32_t parameter = 0;
  std::uint32_t tensor = 0;  ///< In `Model::tensors`; in the HF form only.
  Slice slice;
  Extent extent;                   ///< In `Storage::files`.
  std::optional<Extent> scales{};  ///< Of quantised weights: where their block scales are, also those of other slices.
};

/// Where the tensor bytes lie now, and in which form.
struct Storage {
  Form form = Form::hf;
  std::vector<CatalogFile> files;
  std::vector<StoredPiece> pieces;  ///< By (parameter, slice).
  bool partial = false;             ///< Pieces may be missing: an export that leaves out some of an expert's tensors.
};

/// An opened checkpoint: what is in it and where, no tensor bytes. Immutable and the same on all ranks.
struct Checkpoint {
  std::string path;
  CheckpointFormat format = CheckpointFormat::huggingface;
  std::string source;     ///< Where headers and side files are from: `path`, or the source of shards.
  std::string family;     ///< `qwen3_5_moe`; `qwen3_5_moe_text` where only its language model is there (rule 43).
  TensorCatalog catalog;  ///< The tensors of the HF files, which need not exist (a store).
  Model model;            ///< The same under both their names.
  HfLayout hf;
  Storage storage;
  std::optional<Digests> digests;     ///< Recorded by a store, or by a manifest of the files.
  std::string digests_from;           ///< "store" or "manifest"; empty without them.
  std::string fingerprint;            ///< Of names, sizes, headers and index of the HF files: XXH3-128, 32 hex digits.
  std::string source_fingerprint;     ///< The same of what stands at `source`, of which this may be a selection.
  std::vector<std::string> warnings;  ///< What is odd but no error.
};

class StoreFormat;  // rankslice/store.hpp

struct OpenOptions {
  std::string family = "auto";
  /// Opens native stores when given (`rankslice::native_store()`); without it a store is refused by name.
  StoreFormat const* store = nullptr;
  /// For a folder of shards: the HF checkpoint or store whose headers and side files are used, instead of the recorded
  /// one.
  std::string source{};
  /// How grouped experts lie in the Hugging Face checkpoint. What has been stored in the native form tells by itself.
  ExpertLayout expert_layout = ExpertLayout::automatic;
  /// In which dtype the state dict holds floating tensors: BF16, F16 or F32; parameters that training keeps in F32 are
  /// apart (rule 55). Empty: in their own; quantised weights in that of config.json, else BF16. What is stored in the
  /// native form has its dtypes already.
  std::optional<DType> dtype{};
  /// Rule 43: only the language model, its names without `language_model.`. Empty: for checkpoints that are text
  /// models. What is stored in the native form keeps the names that it was saved with: asking for others is an error.
  std::optional<bool> text_only{};
  /// A manifest (`manifest.hpp`) of the folder's files as they are. Empty: `rankslice.manifest.json` in the folder, if
  /// it is there; one that the files no longer match is not used, with a warning.
  std::string manifest{};
  bool without_manifest = false;  ///< Look for none.
  /// That read and parse headers, at most. 0: for files, whose opening is mostly waiting, up to 8; for what is in them
  /// as many as this process has processors, and one in each of several ranks.
  int threads = 0;
};

/// Open a folder of safetensors files, a native store, or a folder written by `save_shards`. Rank 0 reads headers and
/// index once and shares them. Collective.
/// @throws IoError when something is missing, FormatError when it breaks its format or does not fit its model, and for
/// a manifest that is broken, or was asked for and does not match; UsageError for grouped experts whose shapes fit both
/// layouts, when none is asked for, and for a manifest of what is no folder of safetensors files.
[[nodiscard]] std::shared_ptr<Checkpoint const> open_checkpoint(std::string const& path, Communicator& world,
                                                                OpenOptions const& options = {});

/// The same for a single process. Not collective.
[[nodiscard]] std::shared_ptr<Checkpoint const> open_checkpoint(std::string const& path,
                                                                OpenOptions const& options = {});

/// Which tensors, by HF key.
using KeySelection = std::function<bool(std::string_view hf_key)>;

/// The keys that match `include` and do not match `exclude`; an empty `include` takes all, an empty `exclude` leaves
/// out none. Patterns are PCRE2, whose common part with Python's `re` is nearly all of that, and must match from the
/// key's first character on, but not to its last (rule 25): `mod` matches `model.norm.weight`, `norm` does not. Empty,
/// which stands for all keys, when both patterns are.
/// @throws UsageError for a pattern that cannot be read, with the place and the reason.
[[nodiscard]] KeySelection key_selection(std::string const& include, std::string const& exclude = {});

/// The same checkpoint as if it had only the tensors that `keys` takes, with fresh headers and index, and all side
/// files. The checkpoint itself when it takes all of them, or is empty. Pure.
/// @throws PlanError when nothing is taken, or of split experts some tensors of a parameter and some not;
/// UsageError when `keys` cannot judge a key (a pattern of `key_selection` that backtracks too far).
[[nodiscard]] std::shared_ptr<Checkpoint const> select_tensors(std::shared_ptr<Checkpoint const> const& checkpoint,
                                                               KeySelection const& keys);

}  // namespace rankslice

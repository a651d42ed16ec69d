#pragma once

#include <memory>
#include <vector>

#include "rankslice/digest.hpp"

#include "export_plan.hpp"
#include "native_source.hpp"

namespace rankslice {

/// The values that are exported, and what was seen of them on their way to who writes them.
class ExportedValues {
 public:
  virtual ~ExportedValues() = default;
  [[nodiscard]] virtual NativeSource& tensors() = 0;

  /// The passes over what was taken from here so far: the model of each, and the digests of this rank.
  [[nodiscard]] virtual std::vector<Model const*> models() const = 0;
  [[nodiscard]] virtual std::vector<Digests> passes() const = 0;
  /// Whether one rank alone can compare its passes with what it wrote of them.
  [[nodiscard]] virtual bool known_to_each_rank() const = 0;

  /// What was written of some units is what these passes saw. Local.
  /// @throws VerifyError; IoError when a file changed while it was read
  virtual void require_written(std::vector<Digests> const& passes, Digests const& written,
                               std::vector<PlannedSlice> const& units) const = 0;
};

/// A state in memory; `expected`: what all ranks hold of it. All of them outlive the result.
[[nodiscard]] std::unique_ptr<ExportedValues> exported_state(NativeSource& held, Digests const& expected,
                                                             Checkpoint const& source, ExportTarget const& target);

/// A checkpoint that is written under its own model, if the target is not converted, or else as that has it.
[[nodiscard]] std::unique_ptr<ExportedValues> exported_checkpoint(StreamedTensors& streamed, Checkpoint const& source,
                                                                  ExportTarget const& target);

}  // namespace rankslice

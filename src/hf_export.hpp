#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "rankslice/to_hf.hpp"

#include "agreed_export.hpp"
#include "exported_values.hpp"
#include "shared_output.hpp"
#include "staged_writing.hpp"
#include "watch.hpp"

namespace rankslice {

/// What an export needs beside its plan.
struct ExportSubject {
  ExportedValues& values;
  std::optional<Digests> compared{};  ///< Of the originals, in all ranks, when what is held was compared with them.
  std::string key{};                  ///< Of all that decides the bytes; empty where nothing is to be taken over.
};

/// A checkpoint on its way into a folder. Every function that is no accessor is collective.
class HfExport final : private UnitWriter {
 public:
  /// All of them outlive the result.
  HfExport(ExportPlan const& plan, ExportSubject subject, std::string const& out_dir, Communicator& world,
           ExportOptions const& options, Recording const& recording = {});

  /// Run what writes and publishes: how that ends decides what stays of it.
  void fill(std::function<void()> const& step) { output_.fill(step); }
  /// All files at their full size and the tensors in them, read back and compared, but for those that are there.
  void write();
  /// Side files, the index, and the final name. `streamed`: bytes that were read of the tensors; none of memory.
  [[nodiscard]] ExportReport publish(std::uint64_t streamed);

  /// Sums over all ranks of what an earlier run saw of the tensors of the source that were taken over.
  [[nodiscard]] Digests const& read_before() const { return stages_.taken_over_sums().front(); }
  /// What a rank took of the source in this run, but for what is compared.
  [[nodiscard]] std::vector<PlannedSlice> taken_by(int rank) const;
  /// What it would have taken for what was taken over.
  [[nodiscard]] std::vector<PlannedSlice> taken_before(int rank) const;
  [[nodiscard]] bool took_over() const { return !stages_.units_taken_over().empty(); }
  /// Of all tensors that are no copies, in all ranks together.
  [[nodiscard]] Digests const& written() const { return stages_.sums()[passes_]; }

 private:
  [[nodiscard]] std::vector<Model const*> models() const override;
  [[nodiscard]] Tables none() const override;
  [[nodiscard]] std::size_t first_written() const override { return passes_; }
  void expect(std::vector<PlannedSlice> const& to_read_back, std::vector<PlannedSlice> const& to_write) override;
  [[nodiscard]] Tables write(std::vector<PlannedSlice> const& units) override;
  [[nodiscard]] Tables read_back(std::vector<PlannedSlice> const& units) override;
  [[nodiscard]] int writers() const override { return plan_.gather ? 1 : world_.size(); }
  [[nodiscard]] bool compares_sums() const override;
  void require_equal(Tables const& tables, std::vector<PlannedSlice> const& units, Whose whose) const override;

  [[nodiscard]] std::vector<bool> create_files();
  [[nodiscard]] std::uint64_t bytes_to_move(std::vector<PlannedSlice> const& to_read_back,
                                            std::vector<PlannedSlice> const& to_write) const;
  [[nodiscard]] std::uint64_t bytes_written() const;
  [[nodiscard]] Digests write_own(std::vector<PlannedSlice> const& computed);
  [[nodiscard]] Digests write_gathered(GatherPlan const& gather);
  [[nodiscard]] Digests write_copies(std::vector<PlannedSlice> const& copied);
  [[nodiscard]] std::uint64_t originals_read() const;

  Model const& model_;
  ExportPlan const& plan_;
  ExportSubject subject_;
  Communicator& world_;
  CallOptions call_;    // whose threads are decided
  std::size_t passes_;  // over what is written; two tables more are of what was written, and of copies
  BlockDone alive_;     // of what is no tensor
  BlockDone done_;
  SharedOutput output_;
  Storage files_;
  StagedWriting stages_;
};

}  // namespace rankslice

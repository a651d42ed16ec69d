#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "rankslice/communicator.hpp"
#include "rankslice/digest.hpp"
#include "rankslice/options.hpp"

#include "core/literals.hpp"
#include "plan/segments.hpp"
#include "shared_output.hpp"

namespace rankslice {

/// How an output is cut up, so that little of it is lost when it is interrupted.
struct Recording {
  std::uint64_t stage_bytes = 64_MiB;   ///< Of each rank that writes: what is written at most before it is recorded.
  std::uint64_t store_bytes = 256_MiB;  ///< Of a store, what is recorded together at least.
};

/// Whose passes over tensors are compared.
enum class Whose { this_rank, all_ranks };

/// Writes units of an output, and proves that what stands there is what it was to be. Digests are in tables, one for
/// each pass over the units: what was read of them, what was handed on, …, and last what was written.
class UnitWriter {
 public:
  using Tables = std::vector<Digests>;

  virtual ~UnitWriter() = default;
  /// The model of each table.
  [[nodiscard]] virtual std::vector<Model const*> models() const = 0;
  /// The tables of no units.
  [[nodiscard]] virtual Tables none() const = 0;
  /// Which of the tables is the first of those of what is written.
  [[nodiscard]] virtual std::size_t first_written() const = 0;
  /// What will be read back and written. Local.
  virtual void expect(std::vector<PlannedSlice> const& to_read_back, std::vector<PlannedSlice> const& to_write) = 0;
  /// Write units, every rank its part, and see that they read back so. The tables of this rank. Collective.
  [[nodiscard]] virtual Tables write(std::vector<PlannedSlice> const& units) = 0;
  /// The tables of what is written, of what stands there. Collective.
  [[nodiscard]] virtual Tables read_back(std::vector<PlannedSlice> const& units) = 0;
  /// How many ranks write to the output.
  [[nodiscard]] virtual int writers() const = 0;
  /// Whether passes can be compared in all ranks together only.
  [[nodiscard]] virtual bool compares_sums() const = 0;
  /// The passes over some units agree with each other, and with all that is known of them. Local. @throws VerifyError
  virtual void require_equal(Tables const& tables, std::vector<PlannedSlice> const& units, Whose whose) const = 0;
};

/// Writes an output in stages, after each of which its segments are recorded, or, where that is not asked for, in a
/// single one. Every function that is no accessor is collective.
class StagedWriting {
 public:
  /// All of them outlive the result. Without `recording` nothing is recorded.
  StagedWriting(SharedOutput& output, std::vector<Segment> segments, UnitWriter& writer, Communicator& world,
                std::optional<Recording> recording);

  /// Take over the segments that are recorded and stand there, and write all others; `files_made` says which files of
  /// the output are new. What is not as it was recorded is written again, with a warning to `call`. The results below
  /// are of this. @throws VerifyError, at the stage that has the units
  void run(std::vector<bool> const& files_made, CallOptions const& call);

  [[nodiscard]] std::vector<PlannedSlice> units_taken_over() const { return units_of(segments_, taken_over_); }
  /// The units of each stage of this run.
  [[nodiscard]] std::vector<std::vector<PlannedSlice>> const& stages() const { return stages_; }
  /// Sums over all ranks of the tables of what was taken over.
  [[nodiscard]] UnitWriter::Tables const& taken_over_sums() const { return recorded_; }
  /// The same of everything, if sums are compared or recorded.
  [[nodiscard]] UnitWriter::Tables const& sums() const { return sums_; }
  /// Nothing where nothing was taken over.
  [[nodiscard]] std::optional<Resumed> resumed() const;

 private:
  void find_recorded(std::vector<bool> const& files_made);
  void take_over(CallOptions const& call);
  void write();
  [[nodiscard]] std::vector<std::size_t> to_write() const;
  [[nodiscard]] std::uint64_t stage_bytes() const;
  void add_recorded();
  [[nodiscard]] std::vector<std::size_t> damaged(UnitWriter::Tables const& found) const;
  void forget(std::vector<std::size_t> const& lost, CallOptions const& call);
  void write_stage(std::vector<std::size_t> const& numbers, std::vector<PlannedSlice> const& units);
  [[nodiscard]] std::vector<SegmentRecord> records_of(std::vector<std::size_t> const& numbers,
                                                      UnitWriter::Tables const& tables) const;
  void sum_over_ranks(UnitWriter::Tables& tables);

  SharedOutput& output_;
  std::vector<Segment> segments_;
  UnitWriter& writer_;
  Communicator& world_;
  std::optional<Recording> recording_;
  std::vector<std::size_t> taken_over_;
  std::vector<std::vector<PlannedSlice>> stages_;
  UnitWriter::Tables recorded_, sums_;
};

}  // namespace rankslice

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "rankslice/buffer.hpp"

#include "io/block_plan.hpp"
#include "io/file.hpp"
#include "io/read_engine.hpp"

namespace rankslice {

/// Opens a file of a plan for its blocks. What it throws ends the request that would have waited for them.
using OpenForBlocks = std::function<UniqueFd(std::uint32_t file)>;

/// Makes an engine for `depth` reads at once into `memory`.
using MakeEngine = std::function<std::unique_ptr<ReadEngine>(unsigned depth, std::span<std::byte> memory)>;

/// The blocks of a plan, of all files that one thread reads, each read once and in the order in which they will be
/// asked for; some of them are always under way. What an engine does not bring, as the file ends or it fails, is left
/// to whoever asks for it.
class ReadAhead {
 public:
  ReadAhead(BlockPlan plan, OpenForBlocks open, MakeEngine const& make_engine);
  ~ReadAhead();
  ReadAhead(ReadAhead const&) = delete;
  ReadAhead& operator=(ReadAhead const&) = delete;

  /// Copy to `out` what a block has from `offset` of a file on. Returns how many bytes; 0: no block has, or will have,
  /// this one. @throws what opening a file throws
  [[nodiscard]] std::size_t serve(std::uint32_t file, std::span<std::byte> out, std::uint64_t offset);
  /// Where the next block begins that is behind `offset` of a file, as far as one can come without it.
  [[nodiscard]] std::uint64_t next_block(std::uint32_t file, std::uint64_t offset) const;

  [[nodiscard]] BlockPlan const& plan() const { return plan_; }
  /// Bytes of blocks that were left to others.
  [[nodiscard]] std::uint64_t left_out() const { return left_out_; }

 private:
  enum class State : std::uint8_t { planned, under_way, here, left };
  struct Block {
    State state = State::planned;
    std::uint32_t slot = 0;
    std::uint64_t got = 0;        // bytes that are here
    std::uint64_t requested = 0;  // and will be asked for
  };
  struct OpenedFile {
    UniqueFd fd;
    std::size_t blocks = 0;  // that are not here yet
  };

  [[nodiscard]] std::size_t block_of(std::uint32_t file, std::uint64_t offset) const;
  void start_more();
  void start(std::size_t index);
  void take_one();
  void leave(std::size_t index);
  void give_back(Block& block);
  void file_has_one_less(std::uint32_t file);
  [[nodiscard]] std::byte* memory_of(Block const& block) const;

  BlockPlan plan_;
  OpenForBlocks open_;
  std::vector<Block> blocks_;          // as those of the plan
  std::vector<std::uint32_t> placed_;  // blocks by file and place
  std::vector<OpenedFile> files_;
  std::uint64_t slot_bytes_ = 0;
  Buffer memory_;  // slots of one block each
  std::vector<std::uint32_t> free_slots_;
  std::size_t next_ = 0;  // of the plan
  std::uint64_t left_out_ = 0;
  std::unique_ptr<ReadEngine> engine_;  // the first to go: what is under way needs the rest
};

/// Another reader of one of the files of a ReadAhead, which serves what it has. The rest comes from the other one.
class AheadReader final : public FileReader {
 public:
  /// `ahead` outlives the reader.
  AheadReader(std::unique_ptr<FileReader> file, std::uint32_t index, ReadAhead& ahead)
      : file_(std::move(file)), index_(index), ahead_(ahead) {}

  [[nodiscard]] std::string const& path() const override { return file_->path(); }
  [[nodiscard]] FileIdentity identity() const override { return file_->identity(); }
  void read(std::span<std::byte> out, std::uint64_t offset) override;

 private:
  [[nodiscard]] bool read_behind(std::span<std::byte> out, std::uint64_t offset);

  std::unique_ptr<FileReader> file_;
  std::uint32_t index_;
  ReadAhead& ahead_;
};

}  // namespace rankslice

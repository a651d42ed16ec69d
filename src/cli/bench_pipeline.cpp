#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "rankslice/gather.hpp"
#include "rankslice/load.hpp"
#include "rankslice/store.hpp"
#include "rankslice/to_hf.hpp"
#include "rankslice/verify.hpp"

#include "cli/bench_scratch.hpp"
#include "cli/bench_steps.hpp"
#include "cli/listing.hpp"

namespace rankslice::cli {

namespace {

std::uint64_t held_bytes(StateDict const& held) {
  std::uint64_t bytes = 0;
  for (auto const& [fqn, tensor] : held.tensors) bytes += tensor.data.bytes;
  return bytes;
}

/// Who writes.
enum class Writers { all, rank_0 };

/// The three ways to write: ours, and the same bytes plainly, with and without waiting for the disk.
class Writing {
 public:
  Writing(BenchSubject& subject, std::vector<PlainWriter::File> files, Writers writers = Writers::all)
      : subject_(subject),
        plain_(plain_writer(subject.world, std::move(files), writers)),
        blocks_(std::make_shared<std::vector<std::span<std::byte const>>>(blocks_of(subject.held))) {
    if (blocks_->empty()) throw PlanError("a rank holds nothing that it could write; measure with fewer ranks");
  }

  [[nodiscard]] Run ours(std::string name, std::string meaning, std::string const& output,
                         std::function<void()> work) const {
    return {.name = std::move(name),
            .meaning = std::move(meaning),
            .bytes = plain_->bytes(),
            .collective = true,
            .work = std::move(work),
            .prepare = on_rank_0([scratch = subject_.scratch] { settle_file_system(scratch); }),
            .clean = on_rank_0([output] { std::filesystem::remove_all(output); })};
  }
  [[nodiscard]] Run limit(std::string name, std::string meaning, PlainWriter::Sync sync) const {
    return {.name = std::move(name),
            .meaning = std::move(meaning),
            .bytes = plain_->bytes(),
            .work = [plain = plain_, blocks = blocks_, sync,
                     &subject = subject_] { plain->write(*blocks, sync, subject.alive); },
            .prepare = on_rank_0([plain = plain_, scratch = subject_.scratch] {
              plain->create_files();
              settle_file_system(scratch);
            }),
            .clean = on_rank_0([plain = plain_] { plain->remove_files(); })};
  }

 private:
  static std::shared_ptr<PlainWriter> plain_writer(Communicator const& world, std::vector<PlainWriter::File> files,
                                                   Writers writers) {
    if (writers == Writers::all) {
      return std::make_shared<PlainWriter>(std::move(files), world.rank(), world.size());
    }
    if (world.rank() != 0) files.clear();
    return std::make_shared<PlainWriter>(std::move(files), 0, 1);
  }

  [[nodiscard]] std::function<void()> on_rank_0(std::function<void()> step) const {
    return [step = std::move(step), speaks = subject_.world.rank() == 0] {
      if (speaks) step();
    };
  }

  BenchSubject& subject_;
  std::shared_ptr<PlainWriter> plain_;
  std::shared_ptr<std::vector<std::span<std::byte const>>> blocks_;
};

}  // namespace

Run read_run(BenchSubject& subject, std::shared_ptr<PlainReader const> plain, std::string name, std::string meaning,
             Buffer (*allocate)(std::uint64_t)) {
  auto const memory = std::make_shared<Buffer>();
  return {.name = std::move(name),
          .meaning = std::move(meaning),
          .bytes = plain->bytes(),
          .work =
              [=, &subject] {
                *memory = allocate(plain->memory_bytes());
                plain->read(memory->span(), subject.alive);
              },
          .clean = [memory] { *memory = {}; }};
}

Run load_run(BenchSubject& subject, std::string name, std::string meaning, LoadOptions options, bool verifies) {
  auto const loaded = std::make_shared<StateDict>();
  options.huge_pages = subject.huge_pages;
  return {.name = std::move(name),
          .meaning = std::move(meaning),
          .bytes = subject.plain->bytes(),
          .collective = true,
          .keeps_memory = true,
          .bytes_kept = subject.owned_bytes,
          .work =
              [=, &subject] {
                *loaded = load(subject.checkpoint, subject.mesh, subject.world, options);
                if (!verifies) return;
                VerifyOptions const proved{.level = options.verify, .call = options.call};
                throw_if_bad(subject.world, verify(*loaded, subject.world, proved));
              },
          .clean = [loaded] { *loaded = {}; }};
}

Step load_step(BenchSubject& subject) {
  auto const loading = [&](std::string name, std::string meaning, VerifyLevel level, bool verifies) {
    return load_run(subject, std::move(name), std::move(meaning), {.verify = level, .call = subject.call}, verifies);
  };
  return {
      .name = "load",
      .runs = {loading("load --verify off", "the opened checkpoint becomes the state dict in the native layout",
                       VerifyLevel::off, false),
               loading("load, digesting", "the same, and every byte digested as it is read", VerifyLevel::full, false),
               loading("load --verify coverage", "loading without digests, and who holds what", VerifyLevel::coverage,
                       true),
               loading("load --verify full", "loading with digests, then those of what is held", VerifyLevel::full,
                       true),
               loading("load --verify reread", "the same, and every byte read again", VerifyLevel::reread, true),
               read_run(subject, subject.plain, "pread, 4 KiB pages",
                        "the owned extents into fresh memory, as they are", allocate_small_pages),
               read_run(subject, subject.plain, "pread, 2 MiB pages", "the same into fresh memory on huge pages",
                        allocate_huge_pages)},
      .comparisons = {{0, 5}, {0, 6}, {1, 0}, {2, 0}, {3, 0}, {4, 0}},
      .takes_memory = 2};
}

Step verify_step(BenchSubject& subject) {
  auto const bytes = held_bytes(subject.held);
  return {.name = "verify",
          .runs = {{.name = "verify",
                    .meaning = "all that is held digested where it lies, and compared across ranks",
                    .bytes = bytes,
                    .collective = true,
                    .work =
                        [&subject] {
                          throw_if_bad(subject.world, verify(subject.held, subject.world, {.call = subject.call}));
                        }},
                   {.name = "read memory",
                    .meaning = "the same memory read once and added up",
                    .bytes = bytes,
                    .work = [blocks = blocks_of(subject.held),
                             &subject] { read_memory(blocks, subject.call.threads, subject.alive); }}},
          .comparisons = {{0, 1}}};
}

Step store_step(BenchSubject& subject) {
  std::uint64_t size = 0;
  for (auto const& [fqn, tensor] : subject.held.tensors) {
    size += byte_size(tensor.parameter.dtype, tensor.parameter.shape);
  }
  auto const output = subject.scratch + "/store.h5";
  Writing const writing(subject, {{.path = subject.scratch + "/plain", .size = size}});
  return {.name = "store",
          .runs = {writing.ours(
                       "store", "the held tensors digested, written, synced, read back and renamed", output,
                       [&subject, output] { save_store(subject.held, output, subject.world, {.call = subject.call}); }),
                   writing.limit("pwrite, fsync", "as many bytes from the same memory into one preallocated file",
                                 PlainWriter::Sync::every_file),
                   writing.limit("pwrite", "the same without waiting for the disk", PlainWriter::Sync::none)},
          .comparisons = {{0, 1}, {0, 2}},
          .takes_memory = 2};
}

Step to_hf_step(BenchSubject& subject) {
  std::vector<PlainWriter::File> files;
  for (auto const& file : subject.checkpoint->hf.files) {
    files.push_back({.path = fmt::format("{}/plain-{}", subject.scratch, files.size()), .size = file.size});
  }
  auto const output = subject.scratch + "/exported";
  Writing const writing(subject, files);
  Writing const by_one(subject, std::move(files), Writers::rank_0);
  auto const exported = [&subject, output](bool gather) {
    return [&subject, output, gather] {
      to_hf(subject.held, output, subject.world, {.gather = gather, .call = subject.call});
    };
  };
  return {.name = "to-hf",
          .runs = {writing.ours("to-hf", "the held tensors as HF files: written, synced, read back and renamed", output,
                                exported(false)),
                   writing.ours("to-hf, streamed", "the same from the checkpoint's files, read on the way", output,
                                [&subject, output] {
                                  to_hf(*subject.checkpoint, output, subject.world, {.call = subject.call});
                                }),
                   writing.limit("pwrite, fsync", "as many bytes from memory into preallocated files of the same sizes",
                                 PlainWriter::Sync::every_file),
                   writing.limit("pwrite", "the same without waiting for the disk", PlainWriter::Sync::none),
                   by_one.ours("to-hf --gather", "the held tensors as HF files: sent to rank 0, which does all of it",
                               output, exported(true)),
                   by_one.limit("pwrite, fsync, rank 0", "as many bytes from memory by rank 0 alone",
                                PlainWriter::Sync::every_file),
                   by_one.limit("pwrite, rank 0", "the same without waiting for the disk", PlainWriter::Sync::none)},
          .comparisons = {{0, 2}, {0, 3}, {1, 2}, {1, 3}, {4, 5}, {4, 6}},
          .takes_memory = 2};
}

Step gather_step(BenchSubject& subject) {
  std::uint64_t bytes = 0;
  if (subject.world.rank() == 0) {
    for (auto const& tensor : subject.checkpoint->model.tensors) bytes += byte_size(tensor.dtype, tensor.shape);
  }
  auto const blocks = std::make_shared<std::vector<std::span<std::byte const>>>(blocks_of(subject.held));
  return {
      .name = "gather",
      .runs = {{.name = "gather",
                .meaning = "the held tensors digested, sent to rank 0, handed out there as HF tensors, and proved",
                .bytes = bytes,
                .collective = true,
                .work =
                    [&subject] { gather(subject.held, subject.world, {.call = subject.call}, [](HfBlock const&) {}); }},
               {.name = "memcpy",
                .meaning = "as many bytes copied by rank 0 into memory that is used again",
                .bytes = bytes,
                .work = [blocks, bytes, &subject] { copy_blocks(*blocks, bytes, subject.alive); }}},
      .comparisons = {{0, 1}},
      .takes_memory = 2};
}

}  // namespace rankslice::cli

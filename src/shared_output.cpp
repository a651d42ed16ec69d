#include "shared_output.hpp"

#include <filesystem>
#include <string_view>
#include <utility>

namespace rankslice {

namespace {

std::string broadcast_text(Communicator& world, std::string const& of_rank_0) {
  auto const bytes = std::as_bytes(std::span(of_rank_0));
  std::vector<std::byte> shared(bytes.begin(), bytes.end());
  broadcast_vector(world, shared, 0);
  return {reinterpret_cast<char const*>(shared.data()), shared.size()};
}

}  // namespace

SharedOutput::SharedOutput(std::string const& final_path, StagedOutput::Kind kind, bool overwrite, Communicator& world,
                           std::string const& resume_key, std::function<void(Notice const&)> notice)
    : world_(world), notice_(resume_key.empty() ? nullptr : std::move(notice)) {
  on_every_rank(world, [&] {
    if (world.rank() != 0) return;
    staged_ = std::make_unique<StagedOutput>(final_path, kind, overwrite, resume_key);
    if (!notice_) return;
    for (auto const& warning : staged_->warnings()) notice_({.warning = true, .text = warning});
  });
  share_what_is_there();
}

void SharedOutput::share_what_is_there() {
  path_ = broadcast_text(world_, staged_ ? staged_->path() : "");
  // As text, which carries a checksum: a bit that flips in a sum would send the ranks different ways.
  auto const continues = staged_ && staged_->taken_over();
  taken_over_ = !broadcast_text(world_, continues ? "taken over" : "").empty();
  if (!taken_over_) return;
  auto const lines = broadcast_text(world_, continues ? to_lines(staged_->progress()->records()) : "");
  on_every_rank(world_, [&] {
    for (auto& record : from_lines(lines)) recorded_.insert_or_assign(record.name, std::move(record.sums));
  });
}

void SharedOutput::record(std::vector<SegmentRecord> const& segments) {
  on_every_rank(world_, [&] {
    if (staged_ && staged_->progress() != nullptr) staged_->progress()->append(segments);
    for (auto const& segment : segments) recorded_.insert_or_assign(segment.name, segment.sums);
  });
}

void SharedOutput::forget(std::vector<std::string> const& names) {
  on_every_rank(world_, [&] {
    if (staged_ && staged_->progress() != nullptr) staged_->progress()->forget(names);
    for (auto const& name : names) recorded_.erase(name);
  });
}

void SharedOutput::fill(std::function<void()> const& step) {
  try {
    step();
  } catch (Interrupted const&) {
    keep_unfinished();
    throw;
  } catch (CommError const&) {
    keep_unfinished();
    throw;
  } catch (...) {
    if (staged_) staged_->remove_unfinished();
    throw;
  }
}

void SharedOutput::keep_unfinished() {
  if (!staged_ || staged_->progress() == nullptr) return;
  if (staged_->published()) return tell(staged_->final_path() + " is in place");
  if (recorded_.empty()) return staged_->remove_unfinished();
  staged_->keep_unfinished();
  tell(path_ + " stays: the same command goes on there");
}

void SharedOutput::tell(std::string text) const {
  if (notice_) notice_({.warning = false, .text = std::move(text)});
}

void SharedOutput::publish() {
  on_every_rank(world_, [&] {
    if (staged_) staged_->publish();
  });
}

void make_parent_folders(std::string const& folder, std::string const& name) {
  auto const parent = (std::filesystem::path(folder) / name).parent_path();
  std::error_code error;
  std::filesystem::create_directories(parent, error);
  if (error) throw IoError(ExitCode::cannot_create, parent.string() + ": " + error.message(), parent.string());
}

}  // namespace rankslice

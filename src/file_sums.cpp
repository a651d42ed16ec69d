#include "file_sums.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <filesystem>
#include <optional>

#include "rankslice/manifest.hpp"

#include "core/literals.hpp"
#include "core/name_first.hpp"
#include "core/packed_json.hpp"
#include "core/sha.hpp"
#include "format/sha256_sums.hpp"
#include "io/file.hpp"
#include "watch.hpp"

namespace rankslice {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr auto kBlockBytes = 4_MiB;
constexpr auto kMaxListBytes = 64_MiB;
constexpr std::size_t kSha256Digits = 64;
constexpr std::size_t kGitDigits = 40;

/// Files of a folder and of those below it, by name; what stands in hidden folders is somebody else's. Links to
/// folders, which may lead anywhere, are not followed and are among the names, with a slash at the end.
std::vector<std::string> names_below(std::string const& folder) {
  std::vector<std::string> names;
  std::error_code error;
  auto entry = fs::recursive_directory_iterator(folder, error);
  for (; !error && entry != fs::end(entry); entry.increment(error)) {
    std::error_code ignored;  // of links that lead nowhere
    auto const is_folder = entry->is_directory(ignored);
    if (is_folder && entry->path().filename().string().starts_with('.')) {
      entry.disable_recursion_pending();
    } else if (!is_folder || entry->is_symlink(ignored)) {
      names.push_back(entry->path().lexically_relative(folder).string() + (is_folder ? "/" : ""));
    }
  }
  if (error) throw IoError(ExitCode::io, fmt::format("{}: {}", folder, error.message()), folder);
  std::ranges::sort(names);
  return names;
}

/// The sum that is the name of the blob to which a file of a snapshot leads, if it does.
std::optional<std::string> blob_name(std::string const& path) {
  std::error_code error;
  if (!fs::is_symlink(path, error)) return std::nullopt;
  auto blob = fs::canonical(path, error);
  if (error) blob = fs::read_symlink(path, error);  // it leads nowhere, but to where is known
  auto name = blob.filename().string();
  auto const is_digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  auto const is_sum =
      (name.size() == kSha256Digits || name.size() == kGitDigits) && std::ranges::all_of(name, is_digit);
  if (!is_sum || blob.parent_path().filename() != "blobs") return std::nullopt;
  return name;
}

/// A file with its size. @throws IoError `input_missing`
FileSum listed_file(std::string const& folder, std::string const& name, std::string const& expected,
                    std::string const& source) {
  auto const path = (fs::path(folder) / name).string();
  std::error_code error;
  auto const status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found) {
    throw IoError(ExitCode::input_missing, fmt::format("{}: no such file, but {} has a checksum of it", path, source),
                  path);
  }
  return {.name = name, .path = path, .size = open_reader(path)->identity().size, .expected = expected};
}

FileSums sums_of_list(std::string const& folder, std::string const& list) {
  auto const bytes = read_file(list, kMaxListBytes);
  FileSums sums{.source = list, .files = {}, .unlisted = {}};
  for (auto const& [name, sum] : parse_sha256_sums({reinterpret_cast<char const*>(bytes.data()), bytes.size()}, list)) {
    sums.files.push_back(listed_file(folder, name, sum, list));
  }
  std::error_code ignored;
  for (auto const& name : names_below(folder)) {
    auto const is_known = std::ranges::binary_search(sums.files, name, {}, &FileSum::name);
    if (is_known || name == kManifestName || fs::equivalent(fs::path(folder) / name, list, ignored)) continue;
    sums.unlisted.push_back(name);
  }
  return sums;
}

FileSums sums_of_blobs(std::string const& folder) {
  FileSums sums{.source = "blobs", .files = {}, .unlisted = {}};
  for (auto const& name : names_below(folder)) {
    auto const sum = blob_name((fs::path(folder) / name).string());
    if (sum) {
      sums.files.push_back(listed_file(folder, name, *sum, "its link"));
    } else if (name != kManifestName) {
      sums.unlisted.push_back(name);
    }
  }
  if (!sums.files.empty()) return sums;
  throw IoError(ExitCode::input_missing,
                fmt::format("{}: nobody says what its files should be: there is no {} in it, and they are no links to "
                            "the blobs of a Hub cache; name a list as sha256sum writes it with --sha256 FILE",
                            folder, kSumsName),
                folder);
}

FileSums look_for_sums(std::string const& folder, std::string const& list) {
  if (!list.empty()) return sums_of_list(folder, list);
  auto const own_list = (fs::path(folder) / kSumsName).string();
  std::error_code unreadable;  // told by who reads it
  auto const is_there = fs::symlink_status(own_list, unreadable).type() != fs::file_type::not_found;
  return is_there ? sums_of_list(folder, own_list) : sums_of_blobs(folder);
}

json to_json(FileSums const& sums) {
  auto files = json::array();
  for (auto const& file : sums.files) files.push_back({file.name, file.path, file.size, file.expected});
  return {{"source", sums.source}, {"files", files}, {"unlisted", sums.unlisted}};
}

FileSums file_sums_from(json const& value) {
  FileSums sums{.source = value["source"], .files = {}, .unlisted = value["unlisted"]};
  for (auto const& file : value["files"]) {
    sums.files.push_back({.name = file[0], .path = file[1], .size = file[2], .expected = file[3]});
  }
  return sums;
}

/// The files of a rank: the largest first, each to the rank that has the fewest bytes yet.
std::vector<FileSum const*> files_of(int rank, int ranks, std::vector<FileSum> const& files) {
  std::vector<FileSum const*> by_size;
  for (auto const& file : files) by_size.push_back(&file);
  std::ranges::stable_sort(by_size, std::ranges::greater{}, [](FileSum const* file) { return file->size; });
  std::vector<std::uint64_t> bytes(static_cast<std::size_t>(ranks));
  std::vector<FileSum const*> mine;
  for (auto const* file : by_size) {
    auto const fewest = std::ranges::min_element(bytes);
    if (fewest - bytes.begin() == rank) mine.push_back(file);
    *fewest += file->size + 1;  // files without bytes are work, too
  }
  return mine;
}

std::string sum_of(FileSum const& file, BlockDone const& done) {
  auto const reader = open_reader(file.path);
  auto const identity = reader->identity();
  auto const of_git = file.expected.size() == kGitDigits;
  ShaStream hash(of_git ? Sha::sha1 : Sha::sha256);
  auto const prefix = fmt::format("blob {}", identity.size);
  if (of_git) hash.add(std::as_bytes(std::span(prefix.c_str(), prefix.size() + 1)));  // with its NUL byte
  std::vector<std::byte> block(std::min<std::uint64_t>(kBlockBytes, identity.size));
  for (std::uint64_t at = 0; at < identity.size; at += kBlockBytes) {
    auto const part = std::span(block).first(std::min<std::uint64_t>(kBlockBytes, identity.size - at));
    reader->read(part, at);
    hash.add(part);
    done(part.size());
  }
  if (reader->identity() != identity) {
    throw IoError(ExitCode::io, file.path + ": was changed while it was read", file.path);
  }
  return hash.hex();
}

}  // namespace

FileSums find_file_sums(std::string const& folder, std::string const& list, Communicator& world) {
  FileSums sums;
  std::vector<std::byte> packed;
  on_every_rank(world, [&] {
    if (world.rank() != 0) return;
    sums = look_for_sums(folder, list);
    packed = pack_json(to_json(sums));
  });
  broadcast_vector(world, packed, 0);
  on_every_rank(world, [&] { sums = file_sums_from(unpack_json(packed)); });
  return sums;
}

void FileSumsReport::throw_if_bad() const {
  if (mismatches.empty()) return;
  auto const message =
      fmt::format("{} file{} not as listed", mismatches.size(), mismatches.size() == 1 ? " is" : "s are");
  auto const line = [&](std::size_t i) {
    auto const& [file, expected, found, rank] = mismatches[i];
    return fmt::format("{}: {} expected {}, found {} (rank {})", file,
                       expected.size() == kGitDigits ? "SHA-1 of the git blob" : "SHA-256", expected, found, rank);
  };
  throw VerifyError(message + name_first(mismatches.size(), mismatches.size(), line), mismatches.front().file);
}

FileSumsReport check_file_sums(FileSums const& sums, Communicator& world, CallOptions const& call) {
  auto found = json::array();
  on_every_rank(world, [&] {
    auto const mine = files_of(world.rank(), world.size(), sums.files);
    std::uint64_t bytes = 0;
    for (auto const* file : mine) bytes += file->size;
    auto const done = watch(call, "sha256", bytes, &world);
    for (auto const* file : mine) {
      auto const sum = sum_of(*file, done);
      if (sum != file->expected) found.push_back({file->name, file->expected, sum});
    }
  });
  FileSumsReport report;
  for (auto const& file : sums.files) report.bytes += file.size;
  int rank = 0;
  for (auto const& packed : all_gather(world, pack_json(found))) {
    for (auto const& item : unpack_json(packed)) {
      report.mismatches.push_back({.file = item[0], .expected = item[1], .found = item[2], .rank = rank});
    }
    ++rank;
  }
  std::ranges::sort(report.mismatches, {}, &FileSumsReport::Mismatch::file);
  return report;
}

}  // namespace rankslice

#include "format/hf_folder.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

#include "rankslice/error.hpp"
#include "rankslice/make_state_dict.hpp"
#include "rankslice/manifest.hpp"

#include "core/each_in_threads.hpp"
#include "core/literals.hpp"
#include "format/hf_index.hpp"
#include "format/safetensors.hpp"
#include "io/file.hpp"

namespace rankslice {

namespace {

constexpr std::uint64_t kMaxIndexBytes = 1_GiB;
constexpr std::string_view kConfig = "config.json";
constexpr std::string_view kWeightSuffix = ".safetensors";

std::string below(std::string const& folder, std::string const& name) { return folder + "/" + name; }

/// What `stat` says, links followed.
struct Status {
  int error = 0;  ///< errno
  struct stat data {};

  [[nodiscard]] bool is_missing() const { return error == ENOENT || error == ENOTDIR || error == ELOOP; }
  [[nodiscard]] bool is_regular() const { return error == 0 && S_ISREG(data.st_mode); }
  [[nodiscard]] std::uint64_t size() const { return static_cast<std::uint64_t>(data.st_size); }
  [[nodiscard]] std::int64_t modified_ns() const {
    return std::int64_t{data.st_mtim.tv_sec} * 1'000'000'000 + data.st_mtim.tv_nsec;
  }
};

Status status_of(std::string const& path) {
  Status status;
  if (::stat(path.c_str(), &status.data) != 0) status.error = errno;
  return status;
}

std::string_view kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISFIFO(mode)) return "a pipe";
  if (S_ISSOCK(mode)) return "a socket";
  return S_ISREG(mode) ? "a file" : "a device";
}

/// Why there is nothing under a name: nothing at all, or a link that leads nowhere.
std::string_view why_missing(std::string const& path) {
  std::error_code ignored;
  return std::filesystem::is_symlink(path, ignored) ? "a link that leads to no file" : "no such file";
}

[[noreturn]] void fail_missing(std::string const& path, std::string const& problem) {
  throw IoError(ExitCode::input_missing, fmt::format("{}: {}", path, problem), path);
}

void expect_readable(Status const& status, std::string const& path) {
  if (status.error != 0) throw IoError(ExitCode::io, fmt::format("{}: {}", path, std::strerror(status.error)), path);
}

void expect_folder(std::string const& folder) {
  auto const status = status_of(folder);
  if (status.is_missing()) fail_missing(folder, "expected a folder with safetensors files, found no such folder");
  expect_readable(status, folder);
  if (S_ISDIR(status.data.st_mode)) return;
  auto const advice = folder.ends_with(kWeightSuffix) ? "; pass the folder that it is in" : "";
  fail_missing(folder, fmt::format("expected a folder with safetensors files, found {}{}", kind_of(status.data.st_mode),
                                   advice));
}

std::vector<std::string> names_in(std::string const& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error))
    names.push_back(entry->path().filename().string());
  if (error) throw IoError(ExitCode::io, fmt::format("{}: {}", folder, error.message()), folder);
  std::ranges::sort(names);
  return names;
}

/// `rank-00000.safetensors`, as `save_shards` writes.
bool is_saved_shard(std::string_view name) {
  constexpr std::string_view kPrefix = "rank-";
  if (!name.starts_with(kPrefix) || !name.ends_with(kWeightSuffix)) return false;
  auto const number = name.substr(kPrefix.size(), name.size() - kPrefix.size() - kWeightSuffix.size());
  return number.size() >= 5 && std::ranges::all_of(number, [](char c) { return c >= '0' && c <= '9'; });
}

bool is_our_own(std::string_view name) {
  return name == kManifestName || name.find(".partial-") != std::string_view::npos || is_saved_shard(name);
}

bool is_safetensors_index(std::string_view name) { return name.ends_with(".safetensors.index.json"); }
bool is_safetensors(std::string_view name) { return name.ends_with(kWeightSuffix); }

/// Weights in other formats, and their indexes.
bool is_other_weight(std::string_view name) {
  constexpr std::array kSuffixes{".bin",  ".pt",      ".pth",  ".ckpt", ".h5",
                                 ".hdf5", ".msgpack", ".gguf", ".onnx", ".index.json"};
  return std::ranges::any_of(kSuffixes, [name](std::string_view suffix) { return name.ends_with(suffix); });
}

/// The entries of the top level, by what they are to us.
struct Contents {
  std::vector<std::string> names, indexes, weights;
};

Contents list_folder(std::string const& folder) {
  expect_folder(folder);
  Contents contents;
  contents.names = names_in(folder);
  for (auto const& name : contents.names) {
    if (is_our_own(name)) continue;
    if (is_safetensors_index(name)) contents.indexes.push_back(name);
    if (is_safetensors(name)) contents.weights.push_back(name);
  }
  return contents;
}

/// The first of many names.
std::string some_of(std::vector<std::string> const& names) {
  constexpr std::size_t kShown = 8;
  std::span const shown(names.data(), std::min(names.size(), kShown));
  auto const more = names.size() > kShown ? fmt::format(" and {} more", names.size() - kShown) : "";
  return fmt::format("{}{}", fmt::join(shown, ", "), more);
}

std::string choose_index(std::string const& folder, std::vector<std::string> const& indexes) {
  if (indexes.empty()) return {};
  if (std::ranges::find(indexes, kIndexName) != indexes.end()) return std::string(kIndexName);
  if (indexes.size() == 1) return indexes.front();
  throw FormatError(fmt::format("{}: expected one index or {}, found {}", folder, kIndexName, fmt::join(indexes, ", ")),
                    folder);
}

/// Refuse what is not there, or not a file that can be read at any offset, before anything is opened: opening a pipe
/// would wait for its writer.
void expect_shards(std::string const& folder, HfIndex const& index, std::string const& index_name) {
  std::vector<std::size_t> missing;
  for (std::size_t i = 0; i < index.shards.size(); ++i) {
    auto const path = below(folder, index.shards[i]);
    auto const status = status_of(path);
    if (status.is_missing()) {
      missing.push_back(i);
      continue;
    }
    expect_readable(status, path);
    if (!status.is_regular())
      throw FormatError(fmt::format("{}: expected a file, found {}", path, kind_of(status.data.st_mode)), path);
  }
  if (missing.empty()) return;
  auto const path = below(folder, index.shards[missing.front()]);
  std::vector<std::string> names;
  for (auto const i : missing) names.push_back(index.shards[i]);
  fail_missing(path, fmt::format("{}, but {} expects {} tensors in it ({} of {} shards are missing: {})",
                                 why_missing(path), index_name, index.tensors_per_shard()[missing.front()],
                                 missing.size(), index.shards.size(), some_of(names)));
}

/// A file with its header read.
struct OpenedFile {
  FileIdentity identity;
  std::vector<std::byte> header;
};

/// Opening and reading a file is waiting, mostly: several at once where there are many.
std::vector<OpenedFile> open_files(std::string const& folder, std::vector<std::string> const& names, int threads) {
  constexpr std::size_t kMostThreads = 8;
  constexpr std::size_t kFilesPerThread = 8;
  auto const most = threads > 0 ? static_cast<std::size_t>(threads) : kMostThreads;
  std::vector<OpenedFile> opened(names.size());
  each_in_threads(names.size(), std::min(most, names.size() / kFilesPerThread), [&](std::size_t i) {
    auto const path = below(folder, names[i]);
    auto const reader = open_reader(path);
    opened[i] = {reader->identity(), read_safetensors_header(*reader, path)};
  });
  return opened;
}

/// The headers of the files, which are distinct.
std::vector<HfFile> read_headers(std::string const& folder, std::vector<std::string> const& names, int threads) {
  auto opened = open_files(folder, names, threads);
  std::vector<HfFile> files;
  std::map<std::pair<std::uint64_t, std::uint64_t>, std::string> name_of_inode;
  for (std::size_t i = 0; i < names.size(); ++i) {
    auto const& identity = opened[i].identity;
    auto const [known, is_new] = name_of_inode.emplace(std::pair(identity.device, identity.inode), names[i]);
    if (!is_new) {
      auto const path = below(folder, names[i]);
      throw FormatError(fmt::format("{}: expected a file of its own, found the same file as {}", path, known->second),
                        path);
    }
    files.push_back({names[i], identity.size, std::move(opened[i].header), identity.modified_ns});
  }
  return files;
}

/// The number after the last `-` of a name like `model-00002-of-00003`, if that is what it ends with.
std::optional<std::uint64_t> number_at_end(std::string_view name) {
  auto const dash = name.rfind('-');
  auto const digits = name.substr(dash == std::string_view::npos ? name.size() : dash + 1);
  std::uint64_t number = 0;
  auto const [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (error != std::errc{} || end != digits.data() + digits.size()) return std::nullopt;
  return number;
}

/// Without an index, `model-00002-of-00003.safetensors` is what tells that there must be two more.
void expect_whole_set(std::string const& folder, std::vector<std::string> const& weights) {
  constexpr std::string_view kOf = "-of-";
  std::map<std::pair<std::string, std::uint64_t>, std::uint64_t> found;  // by name before the number, and total
  for (std::string_view stem : weights) {
    stem.remove_suffix(kWeightSuffix.size());
    auto const of = stem.rfind(kOf);
    if (of == std::string_view::npos) continue;
    auto const total = number_at_end(stem.substr(of));
    auto const part = stem.substr(0, of);
    if (total && number_at_end(part)) ++found[{std::string(part.substr(0, part.rfind('-'))), *total}];
  }
  for (auto const& [set, count] : found) {
    auto const& [name, total] = set;
    if (count == total) continue;
    fail_missing(folder, fmt::format("expected {} files {}-*-of-{:05}{}, as their names say, found {}", total, name,
                                     total, kWeightSuffix, count));
  }
}

/// A folder below that has weights: of a repository in the cache of the Hub, the one with a snapshot.
std::optional<std::string> find_checkpoint_below(std::string const& folder) {
  namespace fs = std::filesystem;
  constexpr int kMostLevels = 2;
  constexpr int kMostEntries = 10'000;  // somebody's home directory is not searched
  std::error_code error;
  auto entry = fs::recursive_directory_iterator(folder, fs::directory_options::skip_permission_denied, error);
  for (int seen = 0; !error && entry != fs::end(entry) && seen < kMostEntries; entry.increment(error), ++seen) {
    if (entry.depth() >= kMostLevels) entry.disable_recursion_pending();
    auto const name = entry->path().filename().string();
    if (entry.depth() > 0 && (is_safetensors_index(name) || is_safetensors(name))) {
      return entry->path().parent_path().string();
    }
  }
  return std::nullopt;
}

[[noreturn]] void fail_without_weights(std::string const& folder, std::vector<std::string> const& names) {
  auto message = fmt::format("expected *.safetensors or *.safetensors.index.json, found {}",
                             names.empty() ? "an empty folder" : some_of(names));
  if (std::ranges::any_of(names, is_other_weight)) message += "; weights in other formats are not read";
  if (auto const below = find_checkpoint_below(folder)) message += fmt::format("; did you mean {}?", *below);
  fail_missing(folder, message);
}

/// Sort the rest of the folder into what is carried along and what is not.
void add_side_files(HfLayout& layout, std::string const& folder, std::vector<std::string> const& names,
                    std::vector<std::string>& warnings) {
  for (auto const& name : names) {
    auto const is_read = std::ranges::binary_search(layout.files, name, {}, &HfFile::name);
    if (is_read || name == layout.index_name) continue;
    auto const path = below(folder, name);
    auto const status = status_of(path);
    auto const is_other = is_our_own(name) || is_safetensors(name) || is_other_weight(name);
    auto const leads_nowhere = status.is_missing() || status.error == ELOOP;
    if (!is_other && !leads_nowhere) expect_readable(status, path);  // what cannot be looked at must not get lost
    if (is_other || !status.is_regular() || status.size() > kMaxSideFileBytes) {
      layout.left_out.push_back(name);
    } else {
      layout.side_files.push_back({name, status.size(), path, 0, {}, status.modified_ns()});
    }
    if (is_safetensors(name) && !is_our_own(name))
      warnings.push_back(fmt::format("{}: left out, because {} does not name it", path, layout.index_name));
  }
}

void read_config(HfLayout& layout) {
  auto const config = std::ranges::find(layout.side_files, kConfig, &SideFile::name);
  if (config != layout.side_files.end()) layout.config = read_file(config->path, kMaxSideFileBytes);
}

}  // namespace

std::vector<SideFile> side_files_in(std::string const& folder) {
  expect_folder(folder);
  HfLayout layout;
  std::vector<std::string> no_concern;  // weights are not what is asked for
  add_side_files(layout, folder, names_in(folder), no_concern);
  return layout.side_files;
}

HfLayout read_hf_folder(std::string const& folder, std::vector<std::string>& warnings, int threads) {
  auto const contents = list_folder(folder);
  HfLayout layout;
  layout.index_name = choose_index(folder, contents.indexes);
  if (layout.index_name.empty()) {
    if (contents.weights.empty()) fail_without_weights(folder, contents.names);
    expect_whole_set(folder, contents.weights);
    layout.files = read_headers(folder, contents.weights, threads);
  } else {
    auto const index_path = below(folder, layout.index_name);
    layout.index = read_file(index_path, kMaxIndexBytes);
    auto const index = parse_hf_index(layout.index, index_path);
    expect_shards(folder, index, layout.index_name);
    layout.files = read_headers(folder, index.shards, threads);
  }
  add_side_files(layout, folder, contents.names, warnings);
  read_config(layout);
  return layout;
}

}  // namespace rankslice

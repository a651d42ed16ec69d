#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "rankslice/communicator.hpp"
#include "rankslice/options.hpp"

namespace rankslice {

// Whole files against checksums that somebody else has published: those of a SHA256SUMS file, or the names of the blobs
// to which the files of a snapshot in the Hub's cache lead.

/// A file, and what it should be.
struct FileSum {
  std::string name;  ///< Below its folder.
  std::string path;
  std::uint64_t size = 0;
  std::string expected;  ///< 64 hex digits: SHA-256; 40: SHA-1 as git has it, of "blob SIZE", a NUL byte and the file.
};

struct FileSums {
  std::string source;                 ///< Path of the list, or "blobs".
  std::vector<FileSum> files;         ///< By name.
  std::vector<std::string> unlisted;  ///< Files of the folder, and of those below it, of which nothing is known.
};

/// Find the sums of the files of a folder: in `list`, or without one in the folder's SHA256SUMS, or else in the names
/// of blobs. Rank 0 looks, all are told. Collective.
/// @throws IoError `input_missing` when there are none, or a listed file is not there; FormatError for a malformed list
[[nodiscard]] FileSums find_file_sums(std::string const& folder, std::string const& list, Communicator& world);

struct FileSumsReport {
  struct Mismatch {
    std::string file, expected, found;
    int rank = -1;  ///< Who read it.
  };
  std::uint64_t bytes = 0;  ///< Of all files.
  std::vector<Mismatch> mismatches;

  /// @throws VerifyError naming the first of them.
  void throw_if_bad() const;
};

/// Read the files, the ranks sharing them by their bytes, each from its first byte to its last through a small buffer.
/// The same on every rank. Collective. @throws IoError, also for a file that changes meanwhile
[[nodiscard]] FileSumsReport check_file_sums(FileSums const& sums, Communicator& world, CallOptions const& call);

}  // namespace rankslice

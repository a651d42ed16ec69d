#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "rankslice/store.hpp"

#include "format/hdf5_calls.hpp"
#include "format/hdf5_types.hpp"
#include "io/file.hpp"

namespace rankslice::hdf5 {

/// A store opened for reading, with no trust in it. Local.
class StoreFile {
 public:
  /// @throws IoError when it is not there, FormatError when it is no store of a version known here, or cut short.
  explicit StoreFile(std::string const& path);

  /// The attribute `complete`; nothing when there is none.
  [[nodiscard]] std::optional<std::string> seal() const;

  /// Everything but the tensor bytes and the side files (config.json apart), checked against file size, types and
  /// checksums. @throws FormatError naming the object.
  [[nodiscard]] StoreContents contents();

 private:
  struct Member {
    std::string name;  ///< Unescaped.
    UniqueDataset dataset;
    TensorForm form;
    std::uint64_t offset = 0;
    Subject subject;
  };

  /// The datasets of a group, by name. Each has a fixed place in the file.
  [[nodiscard]] std::vector<Member> members(char const* group);
  [[nodiscard]] Member open_member(char const* group, Link const& link) const;
  [[nodiscard]] std::vector<Member> byte_members(char const* group);
  [[nodiscard]] std::vector<Member> digest_members(char const* group);
  [[nodiscard]] HeaderOrigin read_headers() const;
  void read_tensors(StoreContents& contents);
  void read_source(StoreContents& contents);
  [[nodiscard]] std::vector<StoreContents::RecordedDigest> read_digests(char const* group);
  [[nodiscard]] std::vector<std::byte> read_bytes(Member const& member);
  [[nodiscard]] std::vector<std::byte> read_checked_bytes(Member const& member);
  void refuse_overlaps();

  QuietErrors quiet_;
  Subject root_;
  std::unique_ptr<FileReader> reader_;
  std::uint64_t size_ = 0;
  UniqueFile file_;
  std::vector<std::pair<Range, Subject>> places_;  ///< Of all datasets seen so far.
};

}  // namespace rankslice::hdf5

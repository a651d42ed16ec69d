#include "io/huge_pages.hpp"

#include <fmt/format.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <string_view>

#include "rankslice/error.hpp"

#include "core/literals.hpp"
#include "io/host_limits.hpp"

namespace rankslice {

namespace {

constexpr std::string_view kAdvice = "; without --hugepages on, tensors stand on what there is";

struct AddressRange {
  std::uint64_t begin = 0, end = 0;
};

/// The whole pages of buffers, those that touch as one.
std::vector<AddressRange> joined_pages(std::span<Buffer const> memory) {
  auto const page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  std::vector<AddressRange> ranges;
  for (auto const& buffer : memory) {
    auto const begin = reinterpret_cast<std::uintptr_t>(buffer.data.get());
    if (begin % page == 0) ranges.push_back({begin, (begin + buffer.bytes + page - 1) / page * page});
  }
  std::ranges::sort(ranges, {}, &AddressRange::begin);
  std::vector<AddressRange> joined;
  for (auto const& range : ranges) {
    if (!joined.empty() && joined.back().end == range.begin) {
      joined.back().end = range.end;
    } else {
      joined.push_back(range);
    }
  }
  return joined;
}

/// What of a mapping is whole huge pages of ranges.
std::uint64_t bytes_on_whole_huge_pages(AddressRange const& mapping, std::span<AddressRange const> ranges,
                                        std::uint64_t huge_page) {
  std::uint64_t bytes = 0;
  for (auto const& range : ranges) {
    auto const begin = (std::max(range.begin, mapping.begin) + huge_page - 1) / huge_page * huge_page;
    auto const end = std::min(range.end, mapping.end) / huge_page * huge_page;
    if (end > begin) bytes += end - begin;
  }
  return bytes;
}

/// How a mapping begins in `smaps`: "7f0000000000-7f0000400000 rw-p …". False for its other lines.
bool parse_mapping(std::string_view line, AddressRange& mapping) {
  auto const* const end = line.data() + line.size();
  auto const begin = std::from_chars(line.data(), end, mapping.begin, 16);
  if (begin.ec != std::errc{} || begin.ptr == end || *begin.ptr != '-') return false;
  return std::from_chars(begin.ptr + 1, end, mapping.end, 16).ec == std::errc{};
}

}  // namespace

std::uint64_t huge_page_bytes(std::string const& root) {
  std::uint64_t bytes = 0;
  std::ifstream(root + "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size") >> bytes;
  return bytes > 0 ? bytes : 2_MiB;
}

std::string why_no_huge_pages(std::string const& root) {
  auto const given = huge_pages(root);
  if (given.empty()) return "this system does not say that it has any";
  if (given == "never") return "/sys/kernel/mm/transparent_hugepage/enabled says never";
  if (::prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 1) return "this process may have none (PR_SET_THP_DISABLE)";
  return {};
}

void require_huge_pages() {
  auto const why_not = why_no_huge_pages();
  if (why_not.empty()) return;
  throw UsageError(fmt::format("huge pages were asked for, and there are none: {}{}", why_not, kAdvice));
}

HugePageShare share_on_huge_pages(std::span<Buffer const> memory, std::istream& smaps, std::uint64_t huge_page) {
  constexpr std::string_view kHuge = "AnonHugePages:";
  auto const ranges = joined_pages(memory);
  HugePageShare share;
  share.possible = bytes_on_whole_huge_pages({.begin = 0, .end = UINT64_MAX}, ranges, huge_page);
  std::uint64_t ours = 0;
  for (std::string line; std::getline(smaps, line);) {
    AddressRange mapping;
    if (parse_mapping(line, mapping)) ours = bytes_on_whole_huge_pages(mapping, ranges, huge_page);
    if (ours > 0 && line.starts_with(kHuge))
      share.found += std::min<std::uint64_t>(ours, std::stoull(line.substr(kHuge.size())) * 1_KiB);
  }
  return share;
}

void require_on_huge_pages(std::span<Buffer const> memory) {
  std::ifstream smaps("/proc/self/smaps");
  auto const huge_page = huge_page_bytes();
  auto const share = share_on_huge_pages(memory, smaps, huge_page);
  if (share.found >= share.possible) return;
  throw UsageError(
      fmt::format("huge pages were asked for, and the system gave {} of {} (memory is in pieces, or short: "
                  "/sys/kernel/mm/transparent_hugepage/defrag says whether it may be put in order){}",
                  share.found / huge_page, share.possible / huge_page, kAdvice));
}

}  // namespace rankslice

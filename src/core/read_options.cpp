#include <algorithm>
#include <array>
#include <utility>

#include "rankslice/load.hpp"
#include "rankslice/options.hpp"

namespace rankslice {

namespace {

template <typename Value>
using Named = std::pair<Value, std::string_view>;

constexpr std::array kBackends{
    Named<ReadBackend>{ReadBackend::automatic, "auto"}, Named<ReadBackend>{ReadBackend::pread, "pread"},
    Named<ReadBackend>{ReadBackend::io_uring, "io_uring"}, Named<ReadBackend>{ReadBackend::direct, "direct"}};
constexpr std::array kPageCaches{Named<PageCache>{PageCache::keep, "keep"}, Named<PageCache>{PageCache::drop, "drop"}};
constexpr std::array kHugePages{Named<HugePages>{HugePages::automatic, "auto"}, Named<HugePages>{HugePages::on, "on"},
                                Named<HugePages>{HugePages::off, "off"}};

template <typename Table, typename Value>
std::string_view name_in(Table const& table, Value value) {
  return std::ranges::find(table, value, &Table::value_type::first)->second;
}

template <typename Table>
std::optional<typename Table::value_type::first_type> parse_in(Table const& table, std::string_view name) {
  auto const found = std::ranges::find(table, name, &Table::value_type::second);
  return found == table.end() ? std::nullopt : std::optional(found->first);
}

}  // namespace

std::string_view name(ReadBackend backend) { return name_in(kBackends, backend); }
std::optional<ReadBackend> parse_read_backend(std::string_view name) { return parse_in(kBackends, name); }

std::string_view name(PageCache cache) { return name_in(kPageCaches, cache); }
std::optional<PageCache> parse_page_cache(std::string_view name) { return parse_in(kPageCaches, name); }

std::string_view name(HugePages pages) { return name_in(kHugePages, pages); }
std::optional<HugePages> parse_huge_pages(std::string_view name) { return parse_in(kHugePages, name); }

}  // namespace rankslice

#include "comm/tcp_rendezvous.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <fstream>
#include <random>
#include <string_view>
#include <system_error>
#include <utility>

#include "rankslice/error.hpp"

#include "core/host_name.hpp"

namespace rankslice {
namespace {

constexpr std::string_view kFilePrefix = "file:";
constexpr std::string_view kFirstLine = "rankslice rendezvous 1";
constexpr std::string_view kLastLine = "end";

template <typename Number>
bool parse(std::string_view text, Number& number) {
  auto const [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size();
}

std::string make_token() {
  std::random_device random;
  std::string token;
  for (int i = 0; i < 4; ++i) token += fmt::format("{:08x}", random());
  return token;
}

[[noreturn]] void refuse_file(std::string const& file) {
  throw IoError(ExitCode::cannot_create,
                fmt::format("{}: cannot write the rendezvous file: {}", file, std::generic_category().message(errno)),
                file);
}

void write_file(std::string const& path, std::string_view text) {
  std::unique_ptr<std::FILE, decltype(&std::fclose)> file(std::fopen(path.c_str(), "wxe"), &std::fclose);
  if (!file) refuse_file(path);
  bool const written = std::fwrite(text.data(), 1, text.size(), file.get()) == text.size();
  if (std::fclose(file.release()) != 0 || !written) refuse_file(path);
}

}  // namespace

Rendezvous parse_rendezvous(std::string const& text) {
  Rendezvous rendezvous{.text = text, .file = {}, .host = {}, .port = 0};
  std::string_view rest = text;
  if (rest.starts_with(kFilePrefix) && rest.size() > kFilePrefix.size()) {
    rendezvous.file = rest.substr(kFilePrefix.size());
    return rendezvous;
  }
  auto const colon = rest.rfind(':');
  bool const has_port = colon != std::string_view::npos && parse(rest.substr(colon + 1), rendezvous.port);
  auto host = rest.substr(0, has_port ? colon : 0);
  if (host.starts_with('[') && host.ends_with(']')) {
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string_view::npos) {
    host = {};  // where would its port begin?
  }
  if (host.empty() || rendezvous.port == 0) {
    throw UsageError(
        fmt::format("the rendezvous must be HOST:PORT (an IPv6 address in brackets) or file:PATH, but is '{}'", text));
  }
  rendezvous.host = host;
  return rendezvous;
}

MeetingPlace make_meeting_place(std::uint16_t port) {
  return {.token = make_token(), .host = host_name(), .port = port, .addresses = own_addresses()};
}

std::optional<MeetingPlace> read_meeting_place(std::string const& file) {
  std::ifstream in(file);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(std::move(line));
  if (lines.size() < 5 || lines.front() != kFirstLine || lines.back() != kLastLine) return std::nullopt;
  MeetingPlace place{.token = lines[1], .host = lines[2], .port = 0, .addresses = {lines.begin() + 4, lines.end() - 1}};
  if (!parse(std::string_view(lines[3]), place.port)) return std::nullopt;
  return place;
}

PublishedPlace::PublishedPlace(std::string file, MeetingPlace const& place)
    : file_(std::move(file)), token_(place.token) {
  auto text = fmt::format("{}\n{}\n{}\n{}\n", kFirstLine, place.token, place.host, place.port);
  for (auto const& address : place.addresses) text += address + "\n";
  text += fmt::format("{}\n", kLastLine);
  auto const temporary = fmt::format("{}.{}", file_, token_);
  write_file(temporary, text);
  if (std::rename(temporary.c_str(), file_.c_str()) == 0) return;
  auto const error = errno;
  ::unlink(temporary.c_str());
  errno = error;
  refuse_file(file_);
}

PublishedPlace::~PublishedPlace() {
  try {
    auto const place = read_meeting_place(file_);
    if (place && place->token == token_) ::unlink(file_.c_str());  // and not that of a later run
  } catch (...) {  // out of memory: the token keeps it from misleading anyone
  }
}

std::vector<SocketAddress> addresses_of(Rendezvous const& rendezvous, std::optional<MeetingPlace> const& place) {
  if (rendezvous.file.empty()) return resolve(rendezvous.host, rendezvous.port);
  if (!place) return {};
  std::vector<std::string> hosts;
  if (place->host == host_name()) hosts = {"127.0.0.1", "::1"};
  hosts.insert(hosts.end(), place->addresses.begin(), place->addresses.end());
  hosts.push_back(place->host);
  std::vector<SocketAddress> addresses;
  for (auto const& host : hosts) {
    auto const found = resolve(host, place->port);
    addresses.insert(addresses.end(), found.begin(), found.end());
  }
  return addresses;
}

}  // namespace rankslice

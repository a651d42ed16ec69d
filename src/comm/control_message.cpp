#include "comm/control_message.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <type_traits>

namespace rankslice {
namespace {

class Writer {
 public:
  template <typename Number>
  requires std::is_trivially_copyable_v<Number>
  void put(Number value) { append(std::as_bytes(std::span(&value, 1))); }
  void put(std::string const& text) {
    put(std::uint64_t{text.size()});
    append(std::as_bytes(std::span(text)));
  }

  std::vector<std::byte> bytes;

 private:
  void append(std::span<std::byte const> more) { bytes.insert(bytes.end(), more.begin(), more.end()); }
};

class Reader {
 public:
  explicit Reader(std::span<std::byte const> bytes) : rest_(bytes) {}

  template <typename Number>
  requires std::is_trivially_copyable_v<Number>
  void get(Number& value) {
    auto const source = take(sizeof value);
    std::memcpy(&value, source.data(), source.size());
  }
  void get(std::string& text) {
    std::uint64_t size = 0;
    get(size);
    auto const source = take(size);
    text.resize(source.size());
    std::transform(source.begin(), source.end(), text.begin(), [](std::byte b) { return static_cast<char>(b); });
  }
  void expect_end() const {
    if (!rest_.empty()) throw CommError(ExitCode::bad_launch, "a control message between ranks is too long");
  }

 private:
  std::span<std::byte const> take(std::uint64_t size) {
    if (size > rest_.size()) throw CommError(ExitCode::bad_launch, "a control message between ranks is cut short");
    auto const taken = rest_.first(size);
    rest_ = rest_.subspan(size);
    return taken;
  }

  std::span<std::byte const> rest_;
};

bool has_outcome(ControlKind kind) { return kind == ControlKind::check_in || kind == ControlKind::verdict; }

}  // namespace

std::vector<std::byte> encode(ControlMessage const& message) {
  Writer to;
  to.put(message.kind);
  if (has_outcome(message.kind)) {
    to.put(message.agreement);
    to.put(message.outcome.code);
    to.put(message.outcome.rank);
    to.put(message.outcome.message);
    to.put(message.outcome.file);
    to.put(message.outcome.tensor);
  }
  return std::move(to.bytes);
}

ControlMessage decode(std::span<std::byte const> bytes) {
  ControlMessage message;
  Reader from(bytes);
  from.get(message.kind);
  if (has_outcome(message.kind)) {
    from.get(message.agreement);
    from.get(message.outcome.code);
    from.get(message.outcome.rank);
    from.get(message.outcome.message);
    from.get(message.outcome.file);
    from.get(message.outcome.tensor);
  }
  from.expect_end();
  return message;
}

}  // namespace rankslice

#include "comm/control_message.hpp"

#include <utility>

#include "comm/packing.hpp"

namespace rankslice {
namespace {

bool has_outcome(ControlKind kind) { return kind == ControlKind::check_in || kind == ControlKind::verdict; }

}  // namespace

std::vector<std::byte> encode(ControlMessage const& message) {
  Packer to;
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
  Unpacker from(bytes);
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

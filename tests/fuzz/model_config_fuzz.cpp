// Input: a config.json as it is.

#include "fuzz/fuzz.hpp"
#include "model/family.hpp"

namespace {

using namespace rankslice;
using namespace rankslice::fuzz;

void require_usable(ModelConfig const& config) {
  require(config.sparse_step >= 1, "a step leads on");
  (void)accepts([&] { (void)mtp_form(config); });
  Family const* automatic = nullptr;
  if (!accepts([&] { automatic = &find_family("auto", config); })) return;
  require(&find_family(automatic->name, config) == automatic, "a family does not contradict its own model type");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  ModelConfig config;
  if (accepts([&] { config = parse_model_config(std::as_bytes(std::span(data, size))); })) require_usable(config);
  return 0;
}

#include "rankslice/verify.hpp"

#include "plan/plan.hpp"
#include "storage_reader.hpp"
#include "verify/references.hpp"
#include "verify/shared_mismatches.hpp"

namespace rankslice {

Digests digest(Checkpoint const& checkpoint, Communicator& world, CallOptions const& call) {
  auto const& parameters = checkpoint.parameters;
  Digests sums;
  on_every_rank(world, [&] {
    auto const mesh = make_mesh(world.size());
    auto const plan = make_save_plan(parameters, mesh, mesh.coordinate(world.rank()));
    auto const bytes = plan_bytes(parameters, plan, checkpoint.storage.form);
    sums = digest_parts(parameters, plan, checkpoint.storage, watch(call, "verify", bytes, &world));
  });
  world.all_reduce(sums.source.values(), Reduce::sum);
  world.all_reduce(sums.stored.values(), Reduce::sum);
  return sums;
}

VerifyReport verify(Checkpoint const& checkpoint, Communicator& world, VerifyOptions const& options) {
  VerifyReport report;
  report.level = options.level;
  if (options.level == VerifyLevel::off) return report;
  report.tensors = checkpoint.parameters.size();
  for (auto const& parameter : checkpoint.parameters) {
    if (parameter.stacked_experts) report.experts += parameter.hf_shape[0];
  }
  if (options.level == VerifyLevel::coverage) return report;  // opening it has proved that much

  auto const read = digest(checkpoint, world, options.call);
  compare_with_references(checkpoint, read, options, world, {}, report);
  share_mismatches(report.mismatches, world);
  return report;
}

}  // namespace rankslice

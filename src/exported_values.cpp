#include "exported_values.hpp"

#include <algorithm>

#include "exported_state.hpp"
#include "unit_sums.hpp"
#include "verify/compare.hpp"

namespace rankslice {

namespace {

class HeldValues final : public ExportedValues {
 public:
  HeldValues(NativeSource& held, Digests const& expected, Checkpoint const& source, ExportTarget const& target)
      : held_(held), expected_(expected), source_(source), target_(target) {}

  [[nodiscard]] NativeSource& tensors() override { return held_; }
  [[nodiscard]] std::vector<Model const*> models() const override { return {}; }
  [[nodiscard]] std::vector<Digests> passes() const override { return {}; }
  [[nodiscard]] bool known_to_each_rank() const override { return false; }

  void require_written(std::vector<Digests> const& /*passes*/, Digests const& written,
                       std::vector<PlannedSlice> const& units) const override {
    auto const expected = of_units(target_.model, expected_, units);
    require_equal(target_.model, NamedTable{"held", expected.source}, NamedTable{"written", written.source});
    if (!target_.converted) require_fitting(source_, target_.taken, expected, written);
  }

 private:
  NativeSource& held_;
  Digests const& expected_;
  Checkpoint const& source_;
  ExportTarget const& target_;
};

class ValuesAsRead final : public ExportedValues {
 public:
  ValuesAsRead(StreamedTensors& streamed, Checkpoint const& source, ExportTarget const& target)
      : streamed_(streamed), source_(source), target_(target) {}

  [[nodiscard]] NativeSource& tensors() override { return streamed_; }
  [[nodiscard]] std::vector<Model const*> models() const override { return {&source_.model}; }
  [[nodiscard]] std::vector<Digests> passes() const override { return {streamed_.read()}; }
  [[nodiscard]] bool known_to_each_rank() const override { return true; }

  void require_written(std::vector<Digests> const& passes, Digests const& written,
                       std::vector<PlannedSlice> const& /*units*/) const override {
    streamed_.check_unchanged();
    auto const read = without_left_out(target_.taken, passes.front());
    // Of converted tensors only the values as the files hold them: a trained one need not be exact in fewer bits.
    require_equal(source_.model, NamedTable{"read", read.source}, NamedTable{"written", written.source});
    require_fitting(source_, target_.taken, read, written);
  }

 private:
  StreamedTensors& streamed_;
  Checkpoint const& source_;
  ExportTarget const& target_;
};

/// The digests of values as they are held: of what was converted those of the results.
DigestTable as_held(Model const& model, Digests const& digests) {
  auto held = digests.source;
  for (std::size_t i = 0; i < model.tensors.size(); ++i) {
    if (model.parameters[model.tensors[i].parameter].converted()) {
      std::ranges::copy(digests.stored.of(i), held.of(i).begin());
    }
  }
  return held;
}

/// What was read is what was handed on, and that is what was written.
class ConvertedValues final : public ExportedValues {
 public:
  ConvertedValues(StreamedTensors& streamed, Checkpoint const& source, ExportTarget const& target)
      : streamed_(streamed),
        source_(source),
        target_(target),
        as_read_(streamed, source.model),
        as_exported_(as_read_, target.model) {}

  [[nodiscard]] NativeSource& tensors() override { return as_exported_; }
  [[nodiscard]] std::vector<Model const*> models() const override {
    return {&source_.model, &source_.model, &target_.model};
  }
  [[nodiscard]] std::vector<Digests> passes() const override {
    return {streamed_.read(), as_read_.given(), as_exported_.given()};
  }
  [[nodiscard]] bool known_to_each_rank() const override { return true; }

  void require_written(std::vector<Digests> const& passes, Digests const& written,
                       std::vector<PlannedSlice> const& /*units*/) const override {
    streamed_.check_unchanged();
    auto const exported = without_left_out(target_.taken, passes[2]);
    require_equal(source_.model, NamedTable{"read", as_held(source_.model, passes[0])},
                  NamedTable{"handed on", as_held(source_.model, passes[1])});
    require_equal(target_.model, NamedTable{"handed on", exported.source}, NamedTable{"written", written.source});
  }

 private:
  StreamedTensors& streamed_;
  Checkpoint const& source_;
  ExportTarget const& target_;
  DigestedTensors as_read_, as_exported_;
};

}  // namespace

std::unique_ptr<ExportedValues> exported_state(NativeSource& held, Digests const& expected, Checkpoint const& source,
                                               ExportTarget const& target) {
  return std::make_unique<HeldValues>(held, expected, source, target);
}

std::unique_ptr<ExportedValues> exported_checkpoint(StreamedTensors& streamed, Checkpoint const& source,
                                                    ExportTarget const& target) {
  if (target.converted) return std::make_unique<ConvertedValues>(streamed, source, target);
  return std::make_unique<ValuesAsRead>(streamed, source, target);
}

}  // namespace rankslice

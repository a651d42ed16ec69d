#include <map>
#include <utility>

#include "io/read_engine.hpp"

namespace rankslice {

namespace {

class LastingEngine final : public ReadEngine {
 public:
  LastingEngine(std::unique_ptr<ReadEngine> engine, std::function<void(IoError const&)> on_end)
      : engine_(std::move(engine)), on_end_(std::move(on_end)) {}

  void start(EngineRead const& read) override {
    engine_->start(read);
    under_way_.emplace(read.tag, read);
  }

  EngineCompletion wait() override {
    auto const completion = wait_for_one();
    under_way_.erase(completion.tag);
    return completion;
  }

 private:
  EngineCompletion wait_for_one() {
    try {
      return engine_->wait();
    } catch (IoError const& error) {
      on_end_(error);
      engine_.reset();  // which waits until nothing is written to the memory of a read any more
      engine_ = make_pread_engine();
      for (auto const& [tag, read] : under_way_) engine_->start(read);
    }
    return engine_->wait();
  }

  std::map<std::uint64_t, EngineRead> under_way_;  // by tag
  std::unique_ptr<ReadEngine> engine_;
  std::function<void(IoError const&)> on_end_;
};

}  // namespace

std::unique_ptr<ReadEngine> make_lasting_engine(std::unique_ptr<ReadEngine> engine,
                                                std::function<void(IoError const&)> on_end) {
  return std::make_unique<LastingEngine>(std::move(engine), std::move(on_end));
}

}  // namespace rankslice

#include <map>
#include <utility>

#include "rankslice/error.hpp"

#include "io/read_engine.hpp"

namespace rankslice {

namespace {

class LastingEngine final : public ReadEngine {
 public:
  explicit LastingEngine(std::unique_ptr<ReadEngine> engine) : engine_(std::move(engine)) {}

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
    } catch (IoError const&) {
      engine_.reset();  // which waits until nothing is written to the memory of a read any more
      engine_ = make_pread_engine();
      for (auto const& [tag, read] : under_way_) engine_->start(read);
    }
    return engine_->wait();
  }

  std::map<std::uint64_t, EngineRead> under_way_;  // by tag
  std::unique_ptr<ReadEngine> engine_;
};

}  // namespace

std::unique_ptr<ReadEngine> make_lasting_engine(std::unique_ptr<ReadEngine> engine) {
  return std::make_unique<LastingEngine>(std::move(engine));
}

}  // namespace rankslice

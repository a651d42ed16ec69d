#include <unistd.h>

#include <cerrno>
#include <deque>

#include "io/positional.hpp"
#include "io/read_engine.hpp"

namespace rankslice {

namespace {

class PreadEngine final : public ReadEngine {
 public:
  void start(EngineRead const& read) override { waiting_.push_back(read); }

  EngineCompletion wait() override {
    auto const read = waiting_.front();
    waiting_.pop_front();
    auto const got =
        uninterrupted([&] { return ::pread(read.fd, read.to, read.size, static_cast<::off_t>(read.offset)); });
    return {.tag = read.tag, .got = got < 0 ? -errno : got};
  }

 private:
  std::deque<EngineRead> waiting_;
};

}  // namespace

std::unique_ptr<ReadEngine> make_pread_engine() { return std::make_unique<PreadEngine>(); }

}  // namespace rankslice

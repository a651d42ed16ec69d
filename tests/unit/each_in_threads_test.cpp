#include "core/each_in_threads.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace rankslice {

namespace {

TEST(EachInThreads, TakesEveryNumberOnce) {
  for (std::size_t const count : {0U, 1U, 2U, 7U, 100U}) {
    for (std::size_t const threads : {0U, 1U, 2U, 5U, 16U}) {
      std::vector<std::atomic<int>> taken(count);
      each_in_threads(count, threads, [&](std::size_t i) { ++taken[i]; });
      for (auto const& times : taken) EXPECT_EQ(times, 1) << count << " by " << threads;
    }
  }
}

TEST(EachInThreads, OneThreadIsTheCallersOwnAndGoesInOrder) {
  auto const caller = std::this_thread::get_id();
  std::vector<std::size_t> order;
  each_in_threads(5, 1, [&](std::size_t i) {
    order.push_back(i);
    EXPECT_EQ(std::this_thread::get_id(), caller);
  });
  EXPECT_EQ(order, (std::vector<std::size_t>{0, 1, 2, 3, 4}));
}

TEST(EachInThreads, SeveralAreAtWorkAtOnce) {
  std::atomic<int> waiting = 0;
  each_in_threads(3, 3, [&](std::size_t) {
    ++waiting;
    while (waiting < 3) std::this_thread::yield();  // no one alone gets past this
  });
  EXPECT_EQ(waiting, 3);
}

TEST(EachInThreads, TheErrorIsThatOfTheLowestNumberWhoeverFailsFirst) {
  for (std::size_t const threads : {1U, 2U, 4U, 8U}) {
    try {
      each_in_threads(40, threads, [](std::size_t i) {
        if (i == 5) std::this_thread::sleep_for(std::chrono::milliseconds(5));  // and 6 and 7 fail before
        if (i >= 5) throw std::runtime_error(std::to_string(i));
      });
      FAIL() << "expected an error";
    } catch (std::runtime_error const& error) {
      EXPECT_STREQ(error.what(), "5");
    }
  }
}

TEST(EachInThreads, NumbersAfterAnErrorAreNotBegun) {
  std::atomic<std::size_t> begun = 0;
  EXPECT_THROW(each_in_threads(1000, 1,
                               [&](std::size_t i) {
                                 ++begun;
                                 if (i == 3) throw std::runtime_error("3");
                               }),
               std::runtime_error);
  EXPECT_EQ(begun, 4);
}

}  // namespace

}  // namespace rankslice

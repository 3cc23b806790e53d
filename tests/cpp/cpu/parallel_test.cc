// The parallel loop and the promise that ops allocate nothing once warm.
#include "cpu/parallel.h"

#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <thread>

#include "cpu/pool.h"
#include "cpu/scratch.h"
#include "cpu/tensor.h"
#include "doctest/doctest.h"

namespace octavo::cpu {
namespace {

TEST_CASE("every task runs exactly once for any number of threads") {
  for (const int threads : {1, 2, 3, 8}) {
    SetNumThreads(threads);
    for (const int64_t tasks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(tasks));
      ParallelFor(tasks, [&](int64_t t) { runs[size_t(t)].fetch_add(1); });
      for (const auto& r : runs) REQUIRE(r.load() == 1);
    }
  }
  SetNumThreads(0);
}

TEST_CASE("ranges cover everything once and small work stays on the caller") {
  SetNumThreads(4);
  const std::thread::id self = std::this_thread::get_id();
  for (const int64_t n : {0, 1, 9, 100}) {
    std::vector<std::atomic<int>> seen(static_cast<size_t>(n));
    ParallelRanges(n, 10, 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) seen[size_t(i)].fetch_add(1);
      if (n < 20) CHECK(std::this_thread::get_id() == self);
    });
    for (const auto& s : seen) REQUIRE(s.load() == 1);
  }
  SetNumThreads(0);
}

TEST_CASE("a loop inside a task and loops of several callers complete") {
  SetNumThreads(3);
  std::atomic<int> inner{0};
  ParallelFor(5, [&](int64_t) { ParallelFor(4, [&](int64_t) { inner.fetch_add(1); }); });
  CHECK(inner.load() == 20);
  std::atomic<int> total{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&] {
      for (int i = 0; i < 200; ++i) ParallelFor(6, [&](int64_t) { total.fetch_add(1); });
    });
  }
  for (std::thread& t : callers) t.join();
  CHECK(total.load() == 4 * 200 * 6);
  SetNumThreads(0);
}

TEST_CASE("the pool serves teams that shrink and grow") {
  for (const int threads : {2, 5, 2, 3, 5}) {
    std::atomic<int> ran{0};
    const auto count = [](void* data) { static_cast<std::atomic<int>*>(data)->fetch_add(1); };
    REQUIRE(Pool::Shared()->Run(threads, count, &ran));
    CHECK(ran.load() == threads);
  }
}

TEST_CASE("scratch is aligned, kept and separate by use") {
  void* plan = ThreadScratch(ScratchUse::kPlan, 100);
  void* task = ThreadScratch(ScratchUse::kTask, 1000);
  CHECK(reinterpret_cast<uintptr_t>(plan) % 64 == 0);
  CHECK(plan != task);
  CHECK(ThreadScratch(ScratchUse::kTask, 10) == task);
}

#if defined(__GLIBC__) && !defined(OCTAVO_SANITIZED)
TEST_CASE("a warm op takes nothing from the heap") {
  constexpr int64_t kTokens = 48, kVocab = 4000;
  std::mt19937_64 rng(1);
  Tensor q(DType::kBF16, {kTokens, 4, 64}), out(DType::kBF16, {kTokens, 4, 64});
  Tensor cache(DType::kBF16, {80, 2, 2, 16, 64}), logits(DType::kF32, {4, kVocab});
  q.Randomize(rng);
  cache.Randomize(rng);
  logits.Randomize(rng);
  std::vector<int32_t> table(128), line = {0, 1}, start = {0, 1, kTokens}, length = {1000, 200};
  for (size_t i = 0; i < table.size(); ++i) table[i] = int32_t(i % 80);
  PagedAttentionArgs attention{out.view(),    q.view(),
                               cache.view(),  TensorView::Dense(table.data(), DType::kI32, {2, 64}),
                               Column(line),  Column(start),
                               Column(length)};
  std::vector<int32_t> token(4), rank(4), ids(44);
  std::vector<float> values(44);
  LogprobsArgs logprobs{TensorView::Dense(ids.data(), DType::kI32, {4, 11}),
                        TensorView::Dense(values.data(), DType::kF32, {4, 11}),
                        Column(rank),
                        logits.view(),
                        Column(token),
                        10};
  // One thread: with several it is chance which of them meets the largest tile first, and when.
  SetNumThreads(1);
  size_t before = 0;
  for (int call = 0; call < 20; ++call) {
    if (call == 2) before = mallinfo2().uordblks;
    REQUIRE(PagedAttention(attention).ok());
    REQUIRE(Logprobs(logprobs).ok());
  }
  CHECK(mallinfo2().uordblks == before);
  SetNumThreads(0);
}
#endif

TEST_CASE("an unknown instruction set is refused and changes nothing") {
  const std::string before = Isa();
  CHECK(SetIsa("sse9").code() == StatusCode::kUnavailable);
  CHECK(Isa() == before);
}

}  // namespace
}  // namespace octavo::cpu

// The worker pool under every order that callers can come in: for ThreadSanitizer as much as for
// what is counted here.
#include "cpu/pool.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "doctest/doctest.h"
#include "octavo/ops.h"

namespace octavo::cpu {
namespace {

void Count(void* data) { static_cast<std::atomic<int>*>(data)->fetch_add(1); }

// Starts as many threads as `left` says.
std::atomic<int> left{0};
bool StartSome(Pool& pool, int index, uint32_t seen) {
  return left.fetch_sub(1) > 0 && Pool::StartThread(pool, index, seen);
}

TEST_CASE("a pool whose k-th thread cannot be started goes on with those it has") {
  for (int k = 0; k < 4; ++k) {
    Pool& pool = *new Pool(&StartSome);  // its workers stay for ever
    left = k;
    std::atomic<int> ran{0};
    REQUIRE(pool.Run(5, Count, &ran));
    CHECK(ran == 1 + k);
    CHECK(pool.workers() == k);
    // Not at every job: that would be two system calls each.
    left = 100;
    REQUIRE(pool.Run(5, Count, &ran));
    CHECK(ran == 2 * (1 + k));
    for (int job = 0; job < 300; ++job) REQUIRE(pool.Run(5, Count, &ran));
    CHECK(pool.workers() == 4);
    ran = 0;
    REQUIRE(pool.Run(5, Count, &ran));
    CHECK(ran == 5);
  }
}

// Loops of many sizes, some inside others, from a caller of its own, and what each task wrote.
void Stress(int caller, int rounds) {
  for (int round = 0; round < rounds; ++round) {
    const int64_t tasks = 1 + (caller * 7 + round * 5) % 40;
    std::vector<int64_t> wrote(size_t(tasks), 0);
    ParallelFor(tasks, [&](int64_t t) {
      auto* scratch = static_cast<int64_t*>(ThreadScratch(ScratchUse::kTask, 256));
      scratch[0] = t * caller;
      if (t % 8 == 0) {
        std::atomic<int> inner{0};
        ParallelFor(3, [&](int64_t) { inner.fetch_add(1, std::memory_order_relaxed); });
        scratch[0] += inner - 3;
      }
      wrote[size_t(t)] = scratch[0] + 1;
    });
    for (int64_t t = 0; t < tasks; ++t) {
      if (wrote[size_t(t)] != t * caller + 1) FAIL("a task of another loop ran instead");
    }
  }
}

TEST_CASE("loops of many callers, nested, while the number of threads changes, keep apart") {
  std::atomic<bool> done{false};
  std::thread changer([&] {
    for (int n = 1; !done.load(); n = n % 6 + 1) {
      SetNumThreads(n);
      std::this_thread::yield();
    }
  });
  std::vector<std::thread> callers;
  for (int c = 1; c <= 6; ++c) callers.emplace_back(Stress, c, 4000);
  for (std::thread& t : callers) t.join();
  done = true;
  changer.join();
  SetNumThreads(0);
}

TEST_CASE("callers come and go, and what they leave behind is nobody's") {
  SetNumThreads(4);
  for (int i = 0; i < 40; ++i) std::thread(Stress, 1 + i % 3, 10).join();
  SetNumThreads(0);
}

// ThreadSanitizer follows no threads into a forked process.
#if !defined(__SANITIZE_THREAD__)
// Runs `child` in a fork; its exit status, or -1 if it died.
template <typename Child>
int Fork(Child&& child) {
  std::fflush(nullptr);  // or the child would print it again
  const pid_t pid = fork();
  if (pid == 0) child();
  int status = 0;
  REQUIRE(waitpid(pid, &status, 0) == pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST_CASE("a forked child has a pool of its own, whatever the parent's threads were doing") {
  SetNumThreads(4);
  Stress(1, 2);
  std::atomic<bool> done{false};
  std::thread busy([&] {
    while (!done.load()) Stress(2, 1);
  });
  for (int i = 0; i < 20; ++i) {
    const int status = Fork([] {
      alarm(20);
      std::atomic<int64_t> sum{0};
      ParallelFor(100, [&](int64_t t) { sum.fetch_add(t); });
      _exit(sum == 4950 ? 7 : 1);
    });
    CHECK(status == 7);
  }
  done = true;
  busy.join();
  SetNumThreads(0);
}

// The leak checker of AddressSanitizer finds the parent's pool in the child that exits.
#if !defined(OCTAVO_SANITIZED)
TEST_CASE("a process may exit while its pool works") {
  SetNumThreads(4);
  for (int i = 0; i < 5; ++i) {
    const int status = Fork([] {
      alarm(20);
      for (int c = 1; c <= 3; ++c) {
        std::thread([c] { Stress(c, 1 << 30); }).detach();
      }
      ParallelFor(1000, [](int64_t) {});
      std::exit(7);  // with every static destroyed under them
    });
    CHECK(status == 7);
  }
  SetNumThreads(0);
}
#endif
#endif

}  // namespace
}  // namespace octavo::cpu

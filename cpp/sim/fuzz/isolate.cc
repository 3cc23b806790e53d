#include "sim/fuzz/isolate.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <vector>

#include "base/check.h"
#include "base/strcat.h"
#include "sim/fuzz/generate.h"
#include "sim/fuzz/life.h"

namespace octavo::sim {
namespace {

// Memory that a child writes and its parent reads, also when the child has died.
template <typename T>
class Shared {
 public:
  explicit Shared(size_t count) : bytes_(count * sizeof(T)) {
    void* p = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    OCTAVO_CHECK(p != MAP_FAILED, "no memory to share with a child");
    data_ = static_cast<T*>(p);  // zero, which every T here takes as its start
  }
  ~Shared() { munmap(data_, bytes_); }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  volatile T& operator[](size_t i) { return data_[i]; }

 private:
  size_t bytes_;
  T* data_;
};

struct Progress {
  uint64_t seed;
  uint64_t lives;
  uint64_t steps;
  uint64_t microseconds;
  uint64_t cpu_microseconds;
  uint64_t counts[kNumOps];
};

// A child dies as a process does, whatever the parent (a test program) does with its signals.
void DieByDefault() {
  for (int signal_number : {SIGABRT, SIGVTALRM, SIGTERM, SIGINT}) signal(signal_number, SIG_DFL);
}

// Of the time that the process computes: on a busy machine a life may take its time.
void DieAfter(uint32_t seconds) {
  const itimerval limit{{0, 0}, {static_cast<time_t>(seconds), 0}};
  OCTAVO_CHECK(setitimer(ITIMER_VIRTUAL, &limit, nullptr) == 0, "no timer");
}

void Live(const Scenario& scenario, volatile uint64_t& ops_begun, OpCounts* counts,
          uint64_t* steps) {
  Life life(scenario.config_seed, counts);
  for (const Op& op : scenario.ops) {
    ops_begun = ops_begun + 1;
    life.Apply(op);
  }
  life.Drain();
  *steps += life.steps();
}

std::string ReadAll(int fd) {
  std::string text;
  char buffer[4096];
  for (ssize_t n; (n = read(fd, buffer, sizeof(buffer))) > 0;) text.append(buffer, size_t(n));
  return text;
}

// The line that names the failure: the check's, or a sanitizer's summary.
std::string Describe(int status, const std::string& said) {
  for (const char* mark : {"octavo: ", "SUMMARY: ", "runtime error: "}) {
    const size_t at = said.find(mark);
    if (at == std::string::npos) continue;
    const size_t line = said.rfind('\n', at) + 1;
    return said.substr(line, said.find('\n', at) - line);
  }
  if (WIFSIGNALED(status) && WTERMSIG(status) == SIGVTALRM) {
    return "no end";
  }
  return WIFSIGNALED(status) ? StrCat("signal ", WTERMSIG(status))
                             : StrCat("exit status ", WEXITSTATUS(status));
}

void RunJob(const Campaign& c, int32_t job, volatile Progress& progress) {
  const auto start = std::chrono::steady_clock::now();
  const uint64_t share = c.steps / uint64_t(c.jobs);
  OpCounts counts = {};
  uint64_t steps = 0;
  volatile uint64_t ops = 0;
  for (uint64_t seed = c.first_seed + uint64_t(job); steps < share; seed += uint64_t(c.jobs)) {
    if (c.accepts && !c.accepts(seed, MakeConfig(seed))) continue;
    DieAfter(kMostSeconds);
    progress.seed = seed;
    Live(MakeScenario(seed, c.length), ops, &counts, &steps);
    progress.lives = progress.lives + 1;
    progress.steps = steps;
    progress.microseconds = uint64_t(std::chrono::duration_cast<std::chrono::microseconds>(
                                         std::chrono::steady_clock::now() - start)
                                         .count());
    progress.cpu_microseconds = uint64_t(double(std::clock()) / CLOCKS_PER_SEC * 1e6);
    for (size_t i = 0; i < kNumOps; ++i) progress.counts[i] = counts[i];
  }
}

void Add(volatile const Progress& p, int32_t jobs, CampaignResult* result) {
  result->lives += p.lives;
  result->steps += p.steps;
  result->seconds = std::max(result->seconds, double(p.microseconds) * 1e-6);
  result->cpu_seconds += double(p.cpu_microseconds) * 1e-6;
  result->next_seed = std::max<uint64_t>(result->next_seed, p.seed + uint64_t(jobs));
  for (size_t i = 0; i < kNumOps; ++i) result->counts[i] += p.counts[i];
}

CampaignResult Sum(Shared<Progress>& progress, const Campaign& c) {
  CampaignResult result;
  for (int32_t job = 0; job < c.jobs; ++job) Add(progress[size_t(job)], c.jobs, &result);
  return result;
}

// The next child that has ended; reports while none has.
pid_t WaitFor(int* status, Shared<Progress>& progress, const Campaign& c) {
  if (!c.report) return wait(status);
  constexpr int kMicros = 50'000;
  for (double waited = 0;; waited += kMicros * 1e-6) {
    if (const pid_t child = waitpid(-1, status, WNOHANG); child != 0) return child;
    if (waited >= c.report_seconds) {
      waited = 0;
      c.report(Sum(progress, c));
    }
    usleep(kMicros);
  }
}

}  // namespace

Verdict RunIsolated(const Scenario& scenario, uint32_t most_seconds) {
  Shared<uint64_t> ops_begun(1);
  int pipe_ends[2];
  OCTAVO_CHECK(pipe(pipe_ends) == 0, "no pipe");
  std::fflush(nullptr);
  const pid_t child = fork();
  OCTAVO_CHECK(child >= 0, "no child process");
  if (child == 0) {
    DieByDefault();
    dup2(pipe_ends[1], STDERR_FILENO);
    close(pipe_ends[0]);
    DieAfter(most_seconds);
    OpCounts counts = {};
    uint64_t steps = 0;
    Live(scenario, ops_begun[0], &counts, &steps);
    _exit(0);
  }
  close(pipe_ends[1]);
  const std::string said = ReadAll(pipe_ends[0]);
  close(pipe_ends[0]);
  int status = 0;
  OCTAVO_CHECK(waitpid(child, &status, 0) == child, "the child is gone");
  Verdict verdict;
  verdict.ops_done = ops_begun[0];
  verdict.ok = WIFEXITED(status) && WEXITSTATUS(status) == 0;
  if (!verdict.ok) verdict.failure = Describe(status, said);
  return verdict;
}

CampaignResult RunCampaign(const Campaign& campaign) {
  Shared<Progress> progress(size_t(campaign.jobs));
  std::vector<pid_t> children;
  std::fflush(nullptr);
  for (int32_t job = 0; job < campaign.jobs; ++job) {
    const pid_t child = fork();
    OCTAVO_CHECK(child >= 0, "no child process");
    if (child == 0) {
      DieByDefault();
      RunJob(campaign, job, progress[size_t(job)]);
      _exit(0);
    }
    children.push_back(child);
  }
  CampaignResult result;
  for (size_t left = children.size(); left > 0; --left) {
    int status = 0;
    const pid_t child = WaitFor(&status, progress, campaign);
    const size_t job =
        size_t(std::find(children.begin(), children.end(), child) - children.begin());
    OCTAVO_CHECK(job < children.size(), "a child that is not ours");
    children[job] = -1;
    if (!(WIFEXITED(status) && WEXITSTATUS(status) == 0) && result.ok) {
      result.ok = false;
      result.failed_seed = progress[job].seed;
      for (pid_t other : children) {
        if (other > 0) kill(other, SIGTERM);
      }
    }
  }
  CampaignResult sum = Sum(progress, campaign);
  sum.ok = result.ok;
  sum.failed_seed = result.failed_seed;
  return sum;
}

}  // namespace octavo::sim

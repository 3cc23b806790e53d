#include "emulator/grid.h"

#include <signal.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <semaphore>
#include <thread>

#include "emulator/memory.h"

namespace octavo::emulator {
namespace {

constexpr int kSlots = 8;     // threads of the operating system for a grid: the largest cluster
constexpr int kResident = 3;  // CTAs of a grid without clusters that run side by side
constexpr int kShortTurn = 200, kLongTurn = 20000;  // switches
constexpr const char* kGridWait = "GridDependencyWait";

// A thread that runs CTAs, one at a time, while it is told to.
class Slot {
 public:
  Slot() : thread_([this] { Main(); }) { back_.acquire(); }
  ~Slot() {
    cta_ = nullptr;
    go_.release();
    thread_.join();
  }

  // What the CTA of this slot does next; the caller waits.
  Cta::End Run(int64_t switches) {
    switches_ = switches;
    go_.release();
    back_.acquire();
    return end_;
  }
  Cta& cta() { return *cta_; }

 private:
  void Main();

  std::binary_semaphore go_{0}, back_{0};
  Cta* cta_ = nullptr;
  int64_t switches_ = 0;
  Cta::End end_ = Cta::End::kDone;
  std::thread thread_;
};

// An access to memory that is not there ends the kernel, not the program.
void OnBadAccess(int, siginfo_t* info, void*) {
  Cta* const cta = Cta::CurrentOrNull();
  if (cta == nullptr) {
    signal(SIGSEGV, SIG_DFL);
    return;
  }
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGSEGV);
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
  cta->FaultAt("memory", "touches " + NearestDevice(info->si_addr));
}

void Slot::Main() {
  std::vector<unsigned char> stack(256 * 1024);
  stack_t alternative{};
  alternative.ss_sp = stack.data();
  alternative.ss_size = stack.size();
  sigaltstack(&alternative, nullptr);
  Cta cta(0);
  cta_ = &cta;
  back_.release();
  for (;;) {
    go_.acquire();
    if (cta_ == nullptr) return;
    end_ = cta.Run(switches_);
    back_.release();
  }
}

class Grid {
 public:
  Grid(const Call& call, size_t params_bytes, const char* name, const LaunchConfig& config,
       uint64_t seed)
      : call_(call), name_(name), config_(config), random_(seed), params_(params_bytes) {
    memcpy(params_.data(), call.params, params_bytes);
    call_.params = params_.data();
    order_.resize(size_t{config.grid.x} * config.grid.y / config.cluster);
    std::iota(order_.begin(), order_.end(), 0u);
    for (size_t i = order_.size(); i > 1; --i) {
      std::swap(order_[i - 1], order_[random_.Below(static_cast<uint32_t>(i))]);
    }
    front_done_ = !config.dependent;
  }

  enum class End { kDone, kWaitsForFront, kFault };
  End Run(std::vector<std::unique_ptr<Slot>>* slots);
  const LaunchConfig& config() const { return config_; }
  const std::string& fault() const { return fault_; }
  bool front_done() const { return front_done_; }
  void SetFrontDone() { front_done_ = true; }
  const char* name() const { return name_.c_str(); }

 private:
  void BeginCluster(std::vector<std::unique_ptr<Slot>>* slots, size_t first);
  void BeginClusterIfFree(std::vector<std::unique_ptr<Slot>>* slots, size_t first);
  End Fail(const std::string& what);

  Call call_;
  std::string name_;
  LaunchConfig config_;
  Random random_;
  std::vector<unsigned char> params_;
  std::vector<unsigned> order_;
  size_t next_ = 0;
  bool front_done_;
  std::string fault_;
  std::vector<bool> busy_ = std::vector<bool>(kSlots);
};

uint64_t SeedOfRun() {
  const char* const seed = getenv("EMULATOR_SEED");
  return seed == nullptr ? 1 : strtoull(seed, nullptr, 10);
}

struct Device {
  std::vector<std::unique_ptr<Slot>> slots[2];
  std::unique_ptr<Grid> pending;
  int pending_slots = 0;  // which of the two it runs on
  uint64_t seed = SeedOfRun();
  uint64_t launches = 0;
  std::string fault;
};

Device& TheDevice() {
  static Device device;
  return device;
}

Grid* current_grid = nullptr;  // whose CTA runs: one at any moment

void Grid::BeginCluster(std::vector<std::unique_ptr<Slot>>* slots, size_t first) {
  const unsigned number = order_[next_++];
  auto cluster = std::make_shared<Cluster>();
  const unsigned size = config_.cluster;
  for (unsigned r = 0; r < size; ++r) {
    if (slots->size() <= first + r) slots->push_back(std::make_unique<Slot>());
    cluster->ctas.push_back(&(*slots)[first + r]->cta());
  }
  cluster->threads = static_cast<int>(size * config_.block.x * config_.block.y);
  for (unsigned r = 0; r < size; ++r) {
    const unsigned linear = number * size + r;
    const uint3 block{linear % config_.grid.x, linear / config_.grid.x, 0};
    cluster->ctas[r]->Begin(call_, config_.grid, config_.block, block, config_.shared_bytes,
                            cluster, static_cast<int>(r), random_.Next());
    busy_[first + r] = true;
  }
}

void Grid::BeginClusterIfFree(std::vector<std::unique_ptr<Slot>>* slots, size_t first) {
  if (next_ == order_.size()) return;
  for (size_t r = 0; r < config_.cluster; ++r) {
    if (busy_[first + r]) return;
  }
  BeginCluster(slots, first);
}

Grid::End Grid::Fail(const std::string& what) {
  fault_ = name_ + ": " + what;
  return End::kFault;
}

Grid::End Grid::Run(std::vector<std::unique_ptr<Slot>>* slots) {
  const size_t size = config_.cluster, groups = size > 1 ? 1 : kResident;
  for (;;) {
    for (size_t g = 0; g < groups; ++g) BeginClusterIfFree(slots, g * size);
    std::vector<size_t> busy, runnable;
    for (size_t s = 0; s < busy_.size(); ++s) {
      if (busy_[s]) busy.push_back(s);
      if (busy_[s] && (*slots)[s]->cta().CanRun()) runnable.push_back(s);
    }
    if (busy.empty()) return End::kDone;
    if (runnable.empty()) {
      bool waits = false;
      std::string text = "deadlock";
      for (const size_t s : busy) {
        waits = waits || (*slots)[s]->cta().WaitsFor(kGridWait);
        text += (*slots)[s]->cta().Waiting();
      }
      if (waits && !front_done_) return End::kWaitsForFront;
      return Fail(text);
    }
    const size_t s = runnable[random_.Below(static_cast<uint32_t>(runnable.size()))];
    const int64_t turn = 1 + random_.Below(random_.OneIn(4) ? kShortTurn : kLongTurn);
    current_grid = this;
    const Cta::End end = (*slots)[s]->Run(turn);
    current_grid = nullptr;
    if (end == Cta::End::kFault) return Fail((*slots)[s]->cta().fault());
    if (end == Cta::End::kDone) busy_[s] = false;
  }
}

void Report(Device* device, Grid* grid, Grid::End end) {
  if (end != Grid::End::kFault || !device->fault.empty()) return;
  device->fault = grid->fault() + " [seed " + std::to_string(device->seed) + "]";
}

// Runs the pending grid, which nothing is in front of any more, to its end.
void FinishPending(Device* device) {
  if (device->pending == nullptr) return;
  const std::unique_ptr<Grid> grid = std::move(device->pending);
  grid->SetFrontDone();
  if (!grid->fault().empty()) return;
  Report(device, grid.get(), grid->Run(&device->slots[device->pending_slots]));
}

void CatchBadAccesses() {
  struct sigaction action{};
  action.sa_sigaction = OnBadAccess;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
}

}  // namespace

void LaunchGrid(const Call& call, size_t params_bytes, const char* name,
                const LaunchConfig& config) {
  Device& device = TheDevice();
  if (device.launches == 0) CatchBadAccesses();
  auto grid = std::make_unique<Grid>(call, params_bytes, name, config,
                                     Random(device.seed * 1000003 + device.launches++).Next());
  if (!config.dependent) {
    FinishPending(&device);
    device.pending = std::move(grid);
    return;
  }
  const int slots = 1 - device.pending_slots;
  if (device.pending != nullptr) {
    Report(&device, grid.get(), grid->Run(&device.slots[slots]));
    FinishPending(&device);
  }
  grid->SetFrontDone();
  device.pending = std::move(grid);
  device.pending_slots = slots;
}

bool FinishGrids() {
  FinishPending(&TheDevice());
  return TheDevice().fault.empty();
}

std::string TakeFault() {
  FinishGrids();
  return std::move(TheDevice().fault);
}

void SetSeed(uint64_t seed) {
  FinishPending(&TheDevice());
  TheDevice().seed = seed;
  TheDevice().launches = 1;
  CatchBadAccesses();
}

void WaitForGridInFront(Where where) {
  Grid* const grid = current_grid;
  const auto over = [grid] { return grid->front_done(); };
  Cta::Current().WaitUntil(kGridWait, where, over);
}

}  // namespace octavo::emulator

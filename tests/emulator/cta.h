// One CTA on one thread of the operating system: its CUDA threads are fibers, switched where they
// wait for each other.
//
// Between two such places a thread runs alone. Which one comes next is drawn at random: mostly a
// lane of the same warp, sometimes another warp. What a kernel leaves to chance therefore differs
// from seed to seed, and what it must not leave to chance shows.
//
// Asynchronous copies (cp.async) land when they are issued or as late as the wait that covers them;
// other asynchronous operations (`Defer`) at any moment until somebody waits for what they do.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <source_location>
#include <string>
#include <vector>

#include "emulator/fiber.h"
#include "emulator/random.h"

// Of the thread that runs, set whenever another one goes on.
inline constinit thread_local uint3 threadIdx{}, blockIdx{};
inline constinit thread_local dim3 blockDim{}, gridDim{};

namespace octavo::emulator {

using Where = std::source_location;

inline constexpr int kWarpLanes = 32;
inline constexpr int kMaxThreads = 1024;
inline constexpr int kMaxWarps = kMaxThreads / kWarpLanes;
inline constexpr int kBarriers = 16;

// A cp.async that has not landed.
struct Copy {
  uint32_t to;
  int bytes;         // 0: zeros
  const void* from;  // in global memory, read when the copy lands
  uint32_t group;
};

struct Lane {
  uint3 thread{};  // threadIdx
  int number = 0;  // in the CTA
  Fiber fiber;
  // What it waits for, for the report of a deadlock.
  const char* waits_for = nullptr;
  Where where;
  bool (*ready)(const void*) = nullptr;
  const void* ready_of = nullptr;
  std::vector<Copy> copies;
  uint32_t copy_group = 0;  // the one that is not committed
};

// Lanes of a warp that do something together.
struct Meeting {
  uint32_t mask = 0;  // 0: free
  uint32_t arrived = 0;
  const char* what = nullptr;
  Where where;
  const void* in[kWarpLanes];
  void* out[kWarpLanes];
};

struct Warp {
  uint32_t ready = 0;    // lanes that can run
  uint32_t polling = 0;  // lanes that wait for a condition
  uint32_t done = 0;     // lanes that have ended, or never were
  unsigned turn = 0;     // the lane that runs first among those that can
  Meeting meetings[4];
};

struct Barrier {
  int expected = 0;  // threads; 0: nobody is here
  int arrived = 0;
  int votes = 0;  // of __syncthreads_or and its kin
  int result = 0;
  uint32_t waiting[kMaxWarps] = {};
};

// What a thread's call of a kernel is.
struct Call {
  void (*invoke)(const void* kernel, const void* params) = nullptr;
  const void* kernel = nullptr;
  const void* params = nullptr;
};

// The CTAs that run together and see each other's shared memory.
class Cta;
struct Cluster {
  std::vector<Cta*> ctas;
  int waiting = 0;  // threads at the cluster's barrier
  int threads = 0;
  uint64_t phase = 0;
  int alive = 0;  // CTAs that have not ended
};

class Cta {
 public:
  explicit Cta(uint64_t seed);
  ~Cta();
  Cta(const Cta&) = delete;
  Cta& operator=(const Cta&) = delete;

  // Makes this a CTA of `grid`, with poisoned shared memory. The caller's thread will run it.
  void Begin(const Call& call, dim3 grid, dim3 block_shape, uint3 block, int shared_bytes,
             std::shared_ptr<Cluster> cluster, int rank, uint64_t seed);

  enum class End { kDone, kOutOfTime, kWaits, kFault };
  // Runs until the CTA ends, `switches` switches are over or nobody can go on.
  End Run(int64_t switches);
  // Whether anybody can go on; if nobody, only another CTA or grid can change that.
  bool CanRun();
  const std::string& fault() const { return fault_; }
  // Where every thread waits.
  std::string Waiting() const;
  // True if a thread waits for the grid in front of this one.
  bool WaitsFor(const char* what) const;

  // For the running thread.
  static Cta& Current() { return *current_; }
  static Cta* CurrentOrNull() { return current_; }
  Lane& lane() { return *lane_; }
  int lane_of_warp() const { return lane_->number % kWarpLanes; }
  Random& random() { return random_; }
  int rank() const { return rank_; }
  Cluster& cluster() { return *cluster_; }

  // The lanes of `mask` meet; the last to come calls act(in, out, mask) for all of them, with the
  // operands by lane. `aligned`: they have to be at the same place of the program.
  template <class In, class Out, class Act>
  void Meet(const char* what, Where where, uint32_t mask, bool aligned, const In* in, Out* out,
            Act act);
  // bar.sync `number` for `threads` threads; returns the sum of the votes.
  int SyncBarrier(int number, int threads, int vote, const char* what, Where where);
  // bar.arrive: counts, does not wait.
  void ArriveAtBarrier(int number, int threads, Where where);
  int threads() const { return static_cast<int>(block_shape_.x * block_shape_.y); }
  // A barrier of the whole CTA, where no thread may have ended.
  int SyncThreads(int vote, const char* what, Where where);
  void SyncCluster(Where where);
  // The running thread goes on when ready() holds. It is asked again whenever others have run.
  template <class Ready>
  void WaitUntil(const char* what, Where where, const Ready& ready);
  // Lets others run, one time in n.
  void MayYield(uint32_t n) {
    if (random_.OneIn(n)) Yield();
  }
  void Yield();

  // Something that happens by itself, later: at the latest when nobody can go on without it.
  void Defer(std::function<void()> operation) { later_.push_back(std::move(operation)); }

  // What an extension of the machine keeps for this CTA; null at its beginning.
  std::shared_ptr<void>& attachment() { return attachment_; }

  void IssueCopy(uint32_t to, const void* from, int bytes, Where where);
  void CommitCopies() { ++lane_->copy_group; }
  void WaitCopies(uint32_t pending);

  // Dynamic shared memory, and 32-bit addresses in it as PTX has them.
  unsigned char* shared() { return shared_; }
  uint32_t AddressOf(const void* p, Where where);
  unsigned char* At(uint32_t address, int bytes, Where where);
  // The same variable in the CTA `rank` of the cluster.
  void* Map(void* p, int rank, Where where);

  // Ends the run: the running thread has done what no thread may do.
  [[noreturn]] void Fault(const std::string& message, Where where);
  [[noreturn]] void FaultAt(const std::string& place, const std::string& message);

 private:
  static void LaneMain();
  void LaneEnds();
  // Leaves the running lane, which is not ready, for another.
  void Switch();
  Lane* PickLane();
  bool Poll();
  bool LandOne();
  void Land(Lane& lane, size_t index);
  void MakeReady(int warp, uint32_t lanes) {
    warps_[warp].ready |= lanes;
    ready_warps_ |= 1u << warp;
  }
  void Sleep(const char* what, Where where);
  Meeting& FindMeeting(Warp& warp, const char* what, Where where, uint32_t mask, bool aligned);
  void CompleteBarrier(Barrier* barrier);
  Barrier& EnterBarrier(int number, int threads, const char* what, Where where);
  void MakeStacks();
  void MapShared(int bytes);
  bool SlackIntact() const;
  void Describe(const std::string& place, const std::string& message);

  static constinit thread_local Cta* current_;

  Random random_;
  Call call_;
  dim3 grid_{}, block_shape_{};
  uint3 block_{};
  int rank_ = 0;
  std::shared_ptr<Cluster> cluster_;
  Fiber home_;  // the thread's own stack
  Lane* lane_ = nullptr;
  std::vector<std::unique_ptr<Lane>> lanes_;
  Warp warps_[kMaxWarps];
  int warp_count_ = 0;
  int live_ = 0;
  uint32_t ready_warps_ = 0;
  int warp_ = 0;  // that ran last
  Barrier barriers_[kBarriers];
  std::vector<std::function<void()>> later_;
  std::shared_ptr<void> attachment_;
  int64_t switches_ = 0;  // left of the time
  bool stacks_fresh_ = false;
  unsigned char* stacks_ = nullptr;
  size_t guarded_ = 0;  // stacks whose last page nobody may touch
  unsigned char* shared_ = nullptr;
  unsigned char* shared_map_ = nullptr;
  char* thread_pointer_ = nullptr;
  size_t shared_map_bytes_ = 0;
  int shared_bytes_ = 0;
  std::string fault_;
};

template <class In, class Out, class Act>
void Cta::Meet(const char* what, Where where, uint32_t mask, bool aligned, const In* in, Out* out,
               Act act) {
  const int lane = lane_of_warp(), number = lane_->number / kWarpLanes;
  Warp& warp = warps_[number];
  Meeting& meeting = FindMeeting(warp, what, where, mask, aligned);
  meeting.in[lane] = in;
  meeting.out[lane] = out;
  meeting.arrived |= 1u << lane;
  if (meeting.arrived != mask) {
    Sleep(what, where);
    return;
  }
  act(reinterpret_cast<const In* const*>(meeting.in), reinterpret_cast<Out* const*>(meeting.out),
      mask);
  meeting.mask = 0;
  MakeReady(number, mask & ~(1u << lane));
  warp.turn = random_.Below(kWarpLanes);
  MayYield(4);
}

template <class Ready>
void Cta::WaitUntil(const char* what, Where where, const Ready& ready) {
  if (ready()) return;
  lane_->ready = [](const void* of) { return (*static_cast<const Ready*>(of))(); };
  lane_->ready_of = &ready;
  warps_[lane_->number / kWarpLanes].polling |= 1u << lane_of_warp();
  Sleep(what, where);
}

}  // namespace octavo::emulator

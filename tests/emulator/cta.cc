#include "emulator/cta.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "emulator/memory.h"

namespace octavo::emulator {
namespace {

constexpr size_t kStackBytes = 64 * 1024;
constexpr size_t kStackColours = 61, kStackColour = 128;
constexpr size_t kPage = 4096;
constexpr size_t kSharedAlign = 1024;
constexpr int kPoison = 0xff;               // NaN in every float format
constexpr uint32_t kSharedBase = 0x1000;    // address of the dynamic shared memory's first byte
constexpr uint32_t kStaticBase = 1u << 31;  // of what lies at the thread pointer
constexpr int64_t kStaticReach = 1 << 20;
constexpr uint32_t kOtherWarp = 24;   // one switch in so many goes to any warp
constexpr uint32_t kLandEarly = 512;  // one switch in so many lands something

std::string Place(Where where) {
  const std::string file = where.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

// Every static __shared__ variable is thread-local, at the same distance from this in each thread.
char* ThreadPointer() { return static_cast<char*>(__builtin_thread_pointer()); }

}  // namespace

constinit thread_local Cta* Cta::current_ = nullptr;

Cta::Cta(uint64_t seed) : random_(seed), thread_pointer_(ThreadPointer()) {}

Cta::~Cta() {
  if (stacks_ != nullptr) munmap(stacks_, kMaxThreads * kStackBytes);
  if (shared_map_ != nullptr) munmap(shared_map_, shared_map_bytes_);
}

void Cta::MakeStacks() {
  if (stacks_ == nullptr) {
    void* const memory = mmap(nullptr, kMaxThreads * kStackBytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    stacks_ = static_cast<unsigned char*>(memory);
  }
  for (size_t i = 0; i < lanes_.size(); ++i) {
    unsigned char* const stack = stacks_ + i * kStackBytes;
    if (i >= guarded_ && mprotect(stack, kPage, PROT_NONE) != 0) std::abort();
    // Stacks that ended alike in their pages would meet in a few sets of the cache.
    lanes_[i]->fiber.Start(stack, kStackBytes - i % kStackColours * kStackColour, LaneMain);
  }
  guarded_ = std::max(guarded_, lanes_.size());
  stacks_fresh_ = true;
}

// The memory ends, but for its alignment, where a page ends that nobody may touch.
void Cta::MapShared(int bytes) {
  if (shared_map_ != nullptr) munmap(shared_map_, shared_map_bytes_);
  const size_t room = (static_cast<size_t>(bytes) + kSharedAlign - 1) / kSharedAlign * kSharedAlign;
  const size_t pages = (room + kPage - 1) / kPage * kPage;
  shared_map_bytes_ = pages + 2 * kPage;
  void* const memory =
      mmap(nullptr, shared_map_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  shared_map_ = static_cast<unsigned char*>(memory);
  if (pages > 0 && mprotect(shared_map_ + kPage, pages, PROT_READ | PROT_WRITE) != 0) std::abort();
  shared_ = shared_map_ + kPage + pages - room;
}

bool Cta::SlackIntact() const {
  const unsigned char* const end = shared_map_ + shared_map_bytes_ - kPage;
  return std::all_of(const_cast<const unsigned char*>(shared_) + shared_bytes_, end,
                     [](unsigned char c) { return c == kPoison; });
}

void Cta::Begin(const Call& call, dim3 grid, dim3 block_shape, uint3 block, int shared_bytes,
                std::shared_ptr<Cluster> cluster, int rank, uint64_t seed) {
  call_ = call;
  grid_ = grid;
  block_shape_ = block_shape;
  block_ = block;
  rank_ = rank;
  cluster_ = std::move(cluster);
  random_ = Random(seed);
  fault_.clear();
  if (shared_map_ == nullptr || shared_bytes != shared_bytes_) MapShared(shared_bytes);
  shared_bytes_ = shared_bytes;
  memset(shared_, kPoison, static_cast<size_t>(shared_map_ + shared_map_bytes_ - kPage - shared_));
  if (live_ != 0) stacks_fresh_ = false;  // a CTA that was given up is still on them
  live_ = threads();
  if (static_cast<int>(lanes_.size()) != live_ || !stacks_fresh_) {
    while (static_cast<int>(lanes_.size()) > live_) lanes_.pop_back();
    while (static_cast<int>(lanes_.size()) < live_) lanes_.push_back(std::make_unique<Lane>());
    MakeStacks();
  }
  warp_count_ = (live_ + kWarpLanes - 1) / kWarpLanes;
  ready_warps_ = 0;
  for (int w = 0; w < warp_count_; ++w) {
    const int lanes = std::min(kWarpLanes, live_ - w * kWarpLanes);
    warps_[w] = Warp();
    MakeReady(w, lanes == kWarpLanes ? ~0u : (1u << lanes) - 1);
    warps_[w].done = ~warps_[w].ready;
    warps_[w].turn = random_.Below(kWarpLanes);
  }
  for (Barrier& b : barriers_) b = Barrier();
  for (int i = 0; i < live_; ++i) {
    Lane& lane = *lanes_[static_cast<size_t>(i)];
    lane.number = i;
    lane.thread = {static_cast<unsigned>(i) % block_shape.x,
                   static_cast<unsigned>(i) / block_shape.x, 0};
    lane.waits_for = nullptr;
    lane.copies.clear();
    lane.copy_group = 0;
  }
  later_.clear();
  attachment_.reset();
  warp_ = static_cast<int>(random_.Below(static_cast<uint32_t>(warp_count_)));
}

// Serves one call after another, so that a fiber is made once.
void Cta::LaneMain() {
  for (;;) {
    threadIdx = current_->lane_->thread;
    const Call call = current_->call_;
    call.invoke(call.kernel, call.params);
    current_->LaneEnds();
  }
}

void Cta::LaneEnds() {
  Warp& warp = warps_[lane_->number / kWarpLanes];
  const uint32_t bit = 1u << lane_of_warp();
  for (const Meeting& m : warp.meetings) {
    if ((m.mask & bit) != 0) {
      Fault(std::string("the thread ends, but others of its warp wait for it at ") + m.what + " (" +
                Place(m.where) + ")",
            m.where);
    }
  }
  lane_->waits_for = "the end";
  lane_->where = Where();
  warp.done |= bit;
  warp.ready &= ~bit;
  --live_;
  Switch();
}

Lane* Cta::PickLane() {
  if (ready_warps_ == 0) return nullptr;
  if ((ready_warps_ >> warp_ & 1) == 0 || random_.OneIn(kOtherWarp)) {
    uint32_t left = ready_warps_;
    for (uint32_t skip = random_.Below(static_cast<uint32_t>(std::popcount(left))); skip > 0;
         --skip) {
      left &= left - 1;
    }
    warp_ = std::countr_zero(left);
  }
  Warp& warp = warps_[warp_];
  const int from = static_cast<int>(warp.turn);
  const int lane = (std::countr_zero(std::rotr(warp.ready, from)) + from) % kWarpLanes;
  return lanes_[static_cast<size_t>(warp_ * kWarpLanes + lane)].get();
}

void Cta::Switch() {
  Lane* const old = lane_;
  Warp& warp = warps_[old->number / kWarpLanes];
  if (warp.ready == 0) ready_warps_ &= ~(1u << (old->number / kWarpLanes));
  if (random_.OneIn(kLandEarly)) LandOne();
  Lane* const next = --switches_ <= 0 ? nullptr : PickLane();
  if (next == old) return;
  lane_ = next;
  old->fiber.SwitchTo(next == nullptr ? &home_ : &next->fiber);
  threadIdx = old->thread;
}

void Cta::Sleep(const char* what, Where where) {
  lane_->waits_for = what;
  lane_->where = where;
  warps_[lane_->number / kWarpLanes].ready &= ~(1u << lane_of_warp());
  Switch();
  lane_->waits_for = nullptr;
}

void Cta::Yield() {
  Warp& warp = warps_[lane_->number / kWarpLanes];
  warp.turn = random_.Below(kWarpLanes);
  Switch();
}

bool Cta::Poll() {
  bool any = false;
  for (int w = 0; w < warp_count_; ++w) {
    Warp& warp = warps_[w];
    for (uint32_t left = warp.polling; left != 0; left &= left - 1) {
      const int l = std::countr_zero(left);
      const Lane& lane = *lanes_[static_cast<size_t>(w * kWarpLanes + l)];
      if (!lane.ready(lane.ready_of)) continue;
      warp.polling &= ~(1u << l);
      MakeReady(w, 1u << l);
      any = true;
    }
  }
  return any;
}

bool Cta::CanRun() {
  current_ = this;  // for the conditions
  const bool can = Poll() || ready_warps_ != 0 || !later_.empty() || live_ == 0;
  current_ = nullptr;
  return can;
}

Cta::End Cta::Run(int64_t switches) {
  current_ = this;
  blockIdx = block_;
  blockDim = block_shape_;
  gridDim = grid_;
  switches_ = switches;
  for (;;) {
    if (live_ == 0) {
      if (!SlackIntact()) {
        Describe("at the end of the kernel", "somebody wrote beyond the dynamic shared memory");
      }
      current_ = nullptr;
      return fault_.empty() ? End::kDone : End::kFault;
    }
    if (switches_ <= 0) break;
    Poll();
    Lane* const next = PickLane();
    if (next == nullptr) {
      if (LandOne()) continue;
      current_ = nullptr;
      return End::kWaits;
    }
    lane_ = next;
    home_.SwitchTo(&next->fiber);
    if (!fault_.empty()) {
      stacks_fresh_ = false;  // whoever has not ended never will
      current_ = nullptr;
      return End::kFault;
    }
  }
  current_ = nullptr;
  return End::kOutOfTime;
}

Meeting& Cta::FindMeeting(Warp& warp, const char* what, Where where, uint32_t mask, bool aligned) {
  const uint32_t bit = 1u << lane_of_warp();
  if ((mask & bit) == 0)
    Fault(std::string(what) + " with a mask that lacks the calling lane", where);
  if ((mask & warp.done) != 0) {
    Fault(std::string(what) + " names lanes that have ended: " + std::to_string(mask & warp.done),
          where);
  }
  Meeting* free = nullptr;
  for (Meeting& m : warp.meetings) {
    if (m.mask == 0) free = &m;
    if (m.mask != mask) continue;
    const bool same_place =
        m.where.line() == where.line() && m.where.file_name() == where.file_name();
    if ((m.what != what && strcmp(m.what, what) != 0) || (aligned && !same_place)) {
      Fault("the warp's lanes diverge: some are at " + std::string(m.what) + " (" + Place(m.where) +
                "), this one is at " + what,
            where);
    }
    return m;
  }
  if (free == nullptr)
    Fault("the warp's lanes wait for each other in five different groups", where);
  free->mask = mask;
  free->arrived = 0;
  free->what = what;
  free->where = where;
  return *free;
}

Barrier& Cta::EnterBarrier(int number, int threads, const char* what, Where where) {
  if (number < 0 || number >= kBarriers) Fault("barrier " + std::to_string(number), where);
  if (threads <= 0 || (threads % kWarpLanes != 0 && threads != this->threads()) ||
      threads > this->threads()) {
    Fault(std::string(what) + " of " + std::to_string(threads) + " threads", where);
  }
  Barrier& b = barriers_[number];
  if (b.arrived == 0) {
    b.expected = threads;
    b.votes = 0;
  }
  if (b.expected != threads) {
    Fault(std::string(what) + ": barrier " + std::to_string(number) + " counts " +
              std::to_string(b.expected) + " threads, this one wants " + std::to_string(threads),
          where);
  }
  ++b.arrived;
  return b;
}

void Cta::CompleteBarrier(Barrier* b) {
  b->arrived = 0;
  b->result = b->votes;
  for (int w = 0; w < warp_count_; ++w) {
    if (b->waiting[w] != 0) MakeReady(w, b->waiting[w]);
    if (b->waiting[w] != 0) warps_[w].turn = random_.Below(kWarpLanes);
    b->waiting[w] = 0;
  }
}

int Cta::SyncBarrier(int number, int threads, int vote, const char* what, Where where) {
  Barrier& b = EnterBarrier(number, threads, what, where);
  b.votes += vote;
  if (b.arrived == b.expected) {
    CompleteBarrier(&b);
    const int result = b.result;
    Yield();
    return result;
  }
  b.waiting[lane_->number / kWarpLanes] |= 1u << lane_of_warp();
  Sleep(what, where);
  return b.result;
}

void Cta::ArriveAtBarrier(int number, int threads, Where where) {
  Barrier& b = EnterBarrier(number, threads, "bar.arrive", where);
  if (b.arrived == b.expected) CompleteBarrier(&b);
  MayYield(4);
}

int Cta::SyncThreads(int vote, const char* what, Where where) {
  if (live_ != threads()) {
    Fault(std::string(what) + " after " + std::to_string(threads() - live_) +
              " threads of the CTA have ended",
          where);
  }
  return SyncBarrier(0, threads(), vote, what, where);
}

void Cta::SyncCluster(Where where) {
  Cluster& c = *cluster_;
  const uint64_t phase = c.phase;
  if (++c.waiting == c.threads) {
    c.waiting = 0;
    ++c.phase;
    Yield();
    return;
  }
  const auto over = [&c, phase] { return c.phase != phase; };
  WaitUntil("barrier.cluster", where, over);
}

void Cta::IssueCopy(uint32_t to, const void* from, int bytes, Where where) {
  At(to, 16, where);
  if (bytes > 0) CheckDeviceRange(*this, from, bytes, bytes, where);
  lane_->copies.push_back({to, bytes, from, lane_->copy_group});
  if (random_.OneIn(2)) Land(*lane_, lane_->copies.size() - 1);
}

void Cta::Land(Lane& lane, size_t index) {
  const Copy c = lane.copies[index];
  lane.copies[index] = lane.copies.back();
  lane.copies.pop_back();
  unsigned char* const to = shared_ + (c.to - kSharedBase);
  memset(to, 0, 16);
  if (c.bytes > 0) memcpy(to, c.from, static_cast<size_t>(c.bytes));
}

void Cta::WaitCopies(uint32_t pending) {
  std::vector<Copy>& copies = lane_->copies;
  for (size_t i = copies.size(); i-- > 0;) {
    if (copies[i].group + pending < lane_->copy_group) Land(*lane_, i);
  }
  MayYield(8);
}

bool Cta::LandOne() {
  if (later_.empty()) return false;
  const size_t i = random_.Below(static_cast<uint32_t>(later_.size()));
  std::function<void()> operation = std::move(later_[i]);
  later_[i] = std::move(later_.back());
  later_.pop_back();
  operation();
  return true;
}

uint32_t Cta::AddressOf(const void* p, Where where) {
  const auto* const at = static_cast<const unsigned char*>(p);
  if (at >= shared_ && at <= shared_ + shared_bytes_) {
    return kSharedBase + static_cast<uint32_t>(at - shared_);
  }
  const int64_t off = static_cast<const char*>(p) - thread_pointer_;
  if (off < -kStaticReach || off >= kStaticReach) {
    Fault("a pointer that is taken for one to shared memory is none", where);
  }
  return static_cast<uint32_t>(kStaticBase + off);
}

unsigned char* Cta::At(uint32_t address, int bytes, Where where) {
  if (address % static_cast<uint32_t>(bytes) != 0) {
    Fault(
        "shared address " + std::to_string(address) + " is no multiple of " + std::to_string(bytes),
        where);
  }
  const int64_t off = static_cast<int64_t>(address) - kSharedBase;
  if (off >= 0 && off + bytes <= shared_bytes_) return shared_ + off;
  const int64_t from_thread = static_cast<int64_t>(address) - kStaticBase;
  if (from_thread >= -kStaticReach && from_thread < kStaticReach) {
    return reinterpret_cast<unsigned char*>(thread_pointer_) + from_thread;
  }
  Fault("shared address " + std::to_string(off) + " of " + std::to_string(shared_bytes_) +
            " bytes of dynamic shared memory",
        where);
}

void* Cta::Map(void* p, int rank, Where where) {
  if (rank < 0 || rank >= static_cast<int>(cluster_->ctas.size())) {
    Fault(
        "CTA " + std::to_string(rank) + " of a cluster of " + std::to_string(cluster_->ctas.size()),
        where);
  }
  Cta& other = *cluster_->ctas[static_cast<size_t>(rank)];
  if (other.cluster_ != cluster_ || other.live_ == 0) {
    Fault("the shared memory of a CTA of the cluster that has ended", where);
  }
  auto* const at = static_cast<unsigned char*>(p);
  if (at >= shared_ && at < shared_ + shared_bytes_) return other.shared_ + (at - shared_);
  const int64_t off = static_cast<char*>(p) - thread_pointer_;
  if (off < -kStaticReach || off >= kStaticReach) Fault("mapa of what is not shared", where);
  return other.thread_pointer_ + off;
}

void Cta::Fault(const std::string& message, Where where) { FaultAt(Place(where), message); }

void Cta::FaultAt(const std::string& place, const std::string& message) {
  Describe(place, message);
  home_.Enter();
}

void Cta::Describe(const std::string& place, const std::string& message) {
  std::ostringstream text;
  text << place << ": block (" << block_.x << ", " << block_.y << ") thread ";
  if (lane_ != nullptr) text << lane_->number;
  text << ": " << message;
  fault_ = text.str();
  lane_ = nullptr;
}

std::string Cta::Waiting() const {
  std::ostringstream text;
  for (int w = 0; w < warp_count_; ++w) {
    text << "\n  block " << block_.x << " warp " << w << ":";
    uint32_t told = 0;
    for (int l = 0; l < kWarpLanes && w * kWarpLanes + l < static_cast<int>(lanes_.size()); ++l) {
      const Lane& lane = *lanes_[static_cast<size_t>(w * kWarpLanes + l)];
      if ((told >> l & 1) != 0 || lane.waits_for == nullptr) continue;
      int same = 0;
      for (int o = l; o < kWarpLanes && w * kWarpLanes + o < static_cast<int>(lanes_.size()); ++o) {
        const Lane& other = *lanes_[static_cast<size_t>(w * kWarpLanes + o)];
        if (other.waits_for != lane.waits_for || other.where.line() != lane.where.line()) continue;
        told |= 1u << o;
        ++same;
      }
      text << " " << same << " lanes at " << lane.waits_for;
      if (lane.where.line() != 0) text << " (" << Place(lane.where) << ")";
    }
  }
  return text.str();
}

bool Cta::WaitsFor(const char* what) const {
  for (const auto& lane : lanes_) {
    if (lane->waits_for == what) return true;
  }
  return false;
}

}  // namespace octavo::emulator

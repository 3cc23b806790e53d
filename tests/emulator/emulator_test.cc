// What the emulator is for: kernels with one small mistake each. The mistake shows as a wrong
// number or as a fault that names it, and the same kernel without it is right whatever the seed.
#include <cuda_runtime.h>

#include <functional>
#include <string>
#include <vector>

#include "common/cluster.cuh"
#include "common/launch.h"
#include "common/ptx.cuh"
#include "doctest/doctest.h"
#include "emulator/grid.h"
#include "emulator/memory.h"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 128;
constexpr uint64_t kSeeds = 20;

struct Params {
  const uint32_t* in;
  uint32_t* out;
  uint32_t* counter;
  int n;
};

// Memory of the device with 0, 1, 2, ...
class Numbers {
 public:
  explicit Numbers(int n) {
    std::vector<uint32_t> host(static_cast<size_t>(n));
    for (int i = 0; i < n; ++i) host[static_cast<size_t>(i)] = static_cast<uint32_t>(i);
    REQUIRE(cudaMalloc(reinterpret_cast<void**>(&data), host.size() * 4) == cudaSuccess);
    REQUIRE(cudaMemcpy(data, host.data(), host.size() * 4, cudaMemcpyHostToDevice) == cudaSuccess);
  }
  ~Numbers() { cudaFree(data); }
  Numbers(const Numbers&) = delete;
  Numbers& operator=(const Numbers&) = delete;

  uint32_t* data = nullptr;
};

// The seeds, of kSeeds, with which `right` does not hold after the launch.
int Wrong(void (*kernel)(Params), LaunchShape shape, int out_size,
          const std::function<bool(const std::vector<uint32_t>&)>& right) {
  int wrong = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    emulator::SetSeed(seed);
    Numbers in(4096), out(out_size), counter(1);
    REQUIRE(Launch(kernel, shape, Params{in.data, out.data, counter.data, 4096}).ok());
    std::vector<uint32_t> got(static_cast<size_t>(out_size));
    const cudaError_t copied =
        cudaMemcpy(got.data(), out.data, got.size() * 4, cudaMemcpyDeviceToHost);
    REQUIRE(copied == cudaSuccess);
    wrong += right(got) ? 0 : 1;
  }
  return wrong;
}

// The fault of one launch.
std::string FaultOf(void (*kernel)(Params), LaunchShape shape) {
  emulator::SetSeed(1);
  Numbers in(1024), out(1024), counter(1);
  REQUIRE(Launch(kernel, shape, Params{in.data, out.data, counter.data, 1024}).ok());
  return emulator::TakeFault();
}

void CheckHas(const std::string& text, const std::string& part) {
  CAPTURE(text);
  CHECK(text.find(part) != std::string::npos);
}

bool IsHopper() { return CurrentDeviceFacts().value().clusters; }

LaunchShape Shape(unsigned grid, int shared_bytes) {
  LaunchShape shape;
  shape.grid = grid;
  shape.threads = kThreads;
  shape.shared_bytes = shared_bytes;
  return shape;
}

// Each thread brings 16 bytes and takes those of another.
template <bool kWaits, bool kBarrier>
__global__ void CopyKernel(const __grid_constant__ Params p) {
  const uint32_t shared = SharedAddress(DynamicShared());
  const int t = static_cast<int>(threadIdx.x), other = (t + 37) % kThreads;
  CopyAsync16(shared + t * 16, p.in + t * 4);
  CopyAsyncCommit();
  if constexpr (kWaits) CopyAsyncWait<0>();
  if constexpr (kBarrier) __syncthreads();
  p.out[t] = LoadShared16(shared + other * 16).x;
}

bool CopiedRight(const std::vector<uint32_t>& out) {
  for (int t = 0; t < kThreads; ++t) {
    if (out[static_cast<size_t>(t)] != static_cast<uint32_t>((t + 37) % kThreads * 4)) return false;
  }
  return true;
}

TEST_CASE("a copy that nobody waits for shows as a wrong number") {
  const LaunchShape shape = Shape(1, kThreads * 16);
  CHECK(Wrong(CopyKernel<true, true>, shape, kThreads, CopiedRight) == 0);
  CHECK(Wrong(CopyKernel<false, true>, shape, kThreads, CopiedRight) == kSeeds);
}

TEST_CASE("a missing barrier shows as a wrong number") {
  const LaunchShape shape = Shape(1, kThreads * 16);
  CHECK(Wrong(CopyKernel<true, false>, shape, kThreads, CopiedRight) == kSeeds);
}

// Rounds through a ring of two stages; a lane's piece is read by another lane of its warp.
template <bool kFreed>
__global__ void RingKernel(const __grid_constant__ Params p) {
  constexpr int kRounds = 16;
  const int t = static_cast<int>(threadIdx.x), other = t ^ 1;
  const uint32_t ring = SharedAddress(DynamicShared());
  const auto issue = [&](int round) {
    CopyAsync16(ring + (round % 2 * kThreads + t) * 16, p.in + round * kThreads + t / 4 * 4);
    CopyAsyncCommit();
  };
  issue(0);
  uint32_t sum = 0;
  for (int round = 0; round < kRounds; ++round) {
    if constexpr (kFreed) __syncwarp();  // the stage of the round before is read
    issue(round + 1);
    CopyAsyncWait<1>();
    __syncwarp();
    sum += LoadShared16(ring + (round % 2 * kThreads + other) * 16).x;
  }
  p.out[t] = sum;
}

TEST_CASE("a stage that is filled while somebody reads it shows as a wrong number") {
  const auto right = [](const std::vector<uint32_t>& out) {
    for (uint32_t t = 0; t < kThreads; ++t) {
      if (out[t] != 16 * (t / 4 * 4) + kThreads * 120) return false;
    }
    return true;
  };
  const LaunchShape shape = Shape(1, 2 * kThreads * 16);
  CHECK(Wrong(RingKernel<true>, shape, kThreads, right) == 0);
  CHECK(Wrong(RingKernel<false>, shape, kThreads, right) > 0);
}

// The last CTA to arrive adds what all have left.
template <bool kBarrier>
__global__ void ArriveKernel(const __grid_constant__ Params p) {
  __shared__ uint32_t last;
  const int t = static_cast<int>(threadIdx.x);
  p.out[1 + blockIdx.x * kThreads + t] = 1;
  if constexpr (kBarrier) __syncthreads();
  if (t == 0) {
    last = CountAcquireRelease(p.counter) + 1 == gridDim.x ? 1 : 0;
    if (last != 0) {
      uint32_t sum = 0;
      for (unsigned i = 0; i < gridDim.x * kThreads; ++i) sum += p.out[1 + i];
      p.out[0] = sum;
    }
  }
}

TEST_CASE("a CTA that says it is done before its warps are shows as a wrong number") {
  constexpr unsigned kGrid = 6;
  const auto right = [](const std::vector<uint32_t>& out) { return out[0] == kGrid * kThreads; };
  CHECK(Wrong(ArriveKernel<true>, Shape(kGrid, 0), 1 + kGrid * kThreads, right) == 0);
  CHECK(Wrong(ArriveKernel<false>, Shape(kGrid, 0), 1 + kGrid * kThreads, right) > 0);
}

__global__ void ProduceKernel(const __grid_constant__ Params p) {
  GridDependencyWait();
  p.out[threadIdx.x] = 1000 + threadIdx.x;
}

template <bool kWaits>
__global__ void ConsumeKernel(const __grid_constant__ Params p) {
  if constexpr (kWaits) GridDependencyWait();
  const uint32_t x = p.out[threadIdx.x];
  if constexpr (!kWaits) GridDependencyWait();
  p.out[kThreads + threadIdx.x] = x;
}

TEST_CASE("a kernel that reads before the grid in front of it has ended reads what was there" *
          doctest::skip(!IsHopper())) {
  for (const bool waits : {true, false}) {
    Numbers out(2 * kThreads);
    LaunchShape shape = Shape(1, 0);
    shape.dependent = true;
    const Params p{nullptr, out.data, nullptr, 0};
    REQUIRE(Launch(ProduceKernel, shape, p).ok());
    REQUIRE(Launch(waits ? ConsumeKernel<true> : ConsumeKernel<false>, shape, p).ok());
    uint32_t got = 0;
    REQUIRE(cudaMemcpy(&got, out.data + kThreads + 5, 4, cudaMemcpyDeviceToHost) == cudaSuccess);
    CHECK(got == (waits ? 1005 : 5));
  }
}

// Every CTA of a cluster takes a number from the next one's shared memory.
template <bool kBegun, bool kStays>
__global__ void ClusterKernel(const __grid_constant__ Params p) {
  __shared__ uint32_t fixed;
  uint32_t* const dynamic = reinterpret_cast<uint32_t*>(DynamicShared());
  const int rank = ClusterRank(), next = (rank + 1) % ClusterSize();
  if (threadIdx.x == 0) {
    fixed = 100 + rank;
    *dynamic = 10 + rank;
  }
  __syncthreads();
  if constexpr (kBegun) SyncCluster();
  if (threadIdx.x == 0)
    p.out[blockIdx.x] = *InClusterCta(&fixed, next) + *InClusterCta(dynamic, next);
  if constexpr (kStays) SyncCluster();
}

TEST_CASE("the CTAs of a cluster see each other's shared memory, once both are there" *
          doctest::skip(!IsHopper())) {
  LaunchShape shape = Shape(8, 16);
  shape.cluster = 4;
  const auto right = [](const std::vector<uint32_t>& out) {
    for (uint32_t i = 0; i < 8; ++i) {
      if (out[i] != 110 + 2 * ((i + 1) % 4)) return false;
    }
    return true;
  };
  CHECK(Wrong(ClusterKernel<true, true>, shape, 8, right) == 0);
  CHECK(Wrong(ClusterKernel<false, true>, shape, 8, right) > 0);
  bool ended = false;
  for (uint64_t seed = 1; seed <= kSeeds && !ended; ++seed) {
    emulator::SetSeed(seed);
    Numbers out(8);
    REQUIRE(Launch(ClusterKernel<true, false>, shape, Params{nullptr, out.data, nullptr, 0}).ok());
    ended = emulator::TakeFault().find("that has ended") != std::string::npos;
  }
  CHECK(ended);
}

enum class Mistake {
  kSharedOutOfRange,
  kSharedUnaligned,
  kSharedPointer,
  kGlobalPointer,
  kCopySource,
  kDivergedShuffle,
  kEndedLane,
  kDivergedBarrier,
  kForeignMask,
};

template <Mistake kMistake>
__global__ void MistakenKernel(const __grid_constant__ Params p) {
  const int t = static_cast<int>(threadIdx.x);
  const uint32_t shared = SharedAddress(DynamicShared());
  if constexpr (kMistake == Mistake::kSharedOutOfRange) StoreSharedZero16(shared + t * 16 + 16);
  if constexpr (kMistake == Mistake::kSharedUnaligned) StoreSharedZero16(shared + t * 8);
  if constexpr (kMistake == Mistake::kSharedPointer) DynamicShared()[kThreads * 16 - 1 - t] = 1;
  if constexpr (kMistake == Mistake::kGlobalPointer) p.out[p.n + 100000 + t] = 1;
  if constexpr (kMistake == Mistake::kCopySource) CopyAsync16(shared, p.in + p.n - 4 + t * 4);
  if constexpr (kMistake == Mistake::kDivergedShuffle) {
    if (t % 2 == 0) p.out[t] = __shfl_sync(kFullWarp, t, 0);
    if (t % 2 == 1) p.out[t] = __shfl_xor_sync(kFullWarp, t, 1);
  }
  if constexpr (kMistake == Mistake::kEndedLane) {
    if (t == 5) return;
    p.out[t] = __shfl_sync(kFullWarp, t, 0);
  }
  if constexpr (kMistake == Mistake::kDivergedBarrier) {
    if (t / kWarpSize != 2) SyncThreadsOf(3, kThreads);
  }
  if constexpr (kMistake == Mistake::kForeignMask) p.out[t] = __ballot_sync(0x0000ffffu, 1);
}

TEST_CASE("what no thread may do ends the kernel with a message that says where") {
  const LaunchShape shape = Shape(1, kThreads * 16);
  CheckHas(FaultOf(MistakenKernel<Mistake::kSharedOutOfRange>, shape), "emulator_test.cc:");
  CheckHas(FaultOf(MistakenKernel<Mistake::kSharedOutOfRange>, shape),
           "thread 127: shared address 2048 of 2048 bytes");
  CheckHas(FaultOf(MistakenKernel<Mistake::kSharedUnaligned>, shape), "no multiple of 16");
  CheckHas(FaultOf(MistakenKernel<Mistake::kSharedPointer>, Shape(1, kThreads * 16 - 200)),
           "beyond the dynamic shared");
  CheckHas(FaultOf(MistakenKernel<Mistake::kGlobalPointer>, shape), "touches address");
  CheckHas(FaultOf(MistakenKernel<Mistake::kCopySource>, shape), "an asynchronous copy reads");
  CheckHas(FaultOf(MistakenKernel<Mistake::kDivergedShuffle>, shape), "lanes diverge");
  CheckHas(FaultOf(MistakenKernel<Mistake::kEndedLane>, shape), "_sync");
  CheckHas(FaultOf(MistakenKernel<Mistake::kForeignMask>, shape), "lacks the calling lane");
}

TEST_CASE("a deadlock names where every warp waits") {
  const std::string fault =
      FaultOf(MistakenKernel<Mistake::kDivergedBarrier>, Shape(1, kThreads * 16));
  CheckHas(fault, "deadlock");
  CheckHas(fault, "warp 0: 32 lanes at bar.sync");
  CheckHas(fault, "warp 2: 32 lanes at the end");
}

TEST_CASE("memory that a kernel wrote beyond its end is found when it is freed") {
  auto* const memory = static_cast<unsigned char*>(emulator::AllocateDevice(100));
  memory[100] = 1;
  CHECK(!emulator::FreeDevice(memory));
}

}  // namespace
}  // namespace octavo::cuda

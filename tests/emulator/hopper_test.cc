// What the emulator of sm_90a is for: a small kernel of a copying warp and a multiplying warpgroup,
// right, and with one mistake each.
#include <cuda_runtime.h>

#include <cstring>
#include <vector>

#include "common/launch.h"
#include "common/tensor_map.h"
#include "common/wgmma.cuh"
#include "doctest/doctest.h"
#include "emulator/grid.h"

namespace octavo::cuda {
namespace {

constexpr int kSteps = 12, kTokens = 16, kColumns = 64;
constexpr int kBoxBytes = kTokens * kColumns * 2;
constexpr int kStages = 2;
constexpr int kBarriersAt = kStages * kBoxBytes;
constexpr int kSums = kColumns / 2;  // of a thread
constexpr uint64_t kSeeds = 20;

enum class Mistake { kNone, kNoWaitForCopy, kFreedEarly, kReadEarly, kOperandReused, kOneByteMore };

struct Params {
  CUtensorMap map;  // [1, 1, 1, kSteps * kTokens, kColumns]
  float* out;       // [kWarpgroupSize, kSums]
};

// Every element of the product is the sum of its column over all tokens.
template <Mistake kMistake>
__global__ void SumKernel(const __grid_constant__ Params p) {
  const uint32_t shared = SharedAddress(DynamicShared());
  const uint32_t full = shared + kBarriersAt, empty = full + kStages * kBarrierBytes;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      InitBarrier(full + i * kBarrierBytes, 1);
      InitBarrier(empty + i * kBarrierBytes, kWarpgroupSize);
    }
    FenceBarrierInit();
  }
  __syncthreads();
  if (threadIdx.x >= kWarpgroupSize) {
    if (threadIdx.x != kWarpgroupSize) return;
    for (int s = 0; s < kSteps; ++s) {
      const int stage = s % kStages;
      const uint32_t barrier = full + stage * kBarrierBytes;
      WaitBarrier(empty + stage * kBarrierBytes, (s / kStages + 1) % 2);
      ArriveBarrierExpecting(barrier, kBoxBytes + (kMistake == Mistake::kOneByteMore ? 1 : 0));
      CopyBox5(shared + stage * kBoxBytes, p.map, barrier, 0, s * kTokens, 0, 0, 0);
    }
    return;
  }
  float d[kSums] = {};
  const uint32_t one = Pack<__nv_bfloat16>(1.0f, 1.0f);
  for (int s = 0; s < kSteps; ++s) {
    const int stage = s % kStages;
    uint32_t ones[4] = {one, one, one, one};
    if (kMistake != Mistake::kNoWaitForCopy) {
      WaitBarrier(full + stage * kBarrierBytes, s / kStages % 2);
    }
    WgmmaFence();
    WgmmaRegisters<__nv_bfloat16>(d, ones, MatrixDescriptor(shared + stage * kBoxBytes, 0, 1024));
    WgmmaCommit();
    if (kMistake == Mistake::kFreedEarly) ArriveBarrier(empty + stage * kBarrierBytes);
    if (kMistake == Mistake::kOperandReused) ones[1] = 0;
    if (kMistake == Mistake::kReadEarly && s == kSteps - 1) break;
    WgmmaWait<0>();
    PinRegisters(d);
    if (kMistake != Mistake::kFreedEarly) ArriveBarrier(empty + stage * kBarrierBytes);
  }
  for (int i = 0; i < kSums; ++i) p.out[threadIdx.x * kSums + i] = d[i];
}

// Memory of the device with values that bfloat16 adds exactly.
class Values {
 public:
  Values() {
    std::vector<uint16_t> host;
    for (int t = 0; t < kSteps * kTokens; ++t) {
      for (int c = 0; c < kColumns; ++c) host.push_back(Bits(ValueOf(t, c)));
    }
    const size_t bytes = host.size() * 2, out_bytes = sizeof(float) * kWarpgroupSize * kSums;
    REQUIRE(cudaMalloc(&data_, bytes) == cudaSuccess);
    REQUIRE(cudaMalloc(&out_, out_bytes) == cudaSuccess);
    REQUIRE(cudaMemcpy(data_, host.data(), bytes, cudaMemcpyHostToDevice) == cudaSuccess);
    REQUIRE(cudaMemset(out_, 0xff, out_bytes) == cudaSuccess);
    const TensorView view =
        TensorView::Dense(data_, DType::kBF16, {1, 1, 1, kSteps * kTokens, kColumns});
    REQUIRE(FitsTensorMap(view));
    REQUIRE(EncodeTensorMap(view, {1, 1, 1, kTokens, kColumns}, &params_.map).ok());
    params_.out = static_cast<float*>(out_);
  }
  ~Values() {
    cudaFree(data_);
    cudaFree(out_);
  }
  Values(const Values&) = delete;
  Values& operator=(const Values&) = delete;

  const Params& params() const { return params_; }
  // Whether the kernel ran to its end and was right; forgets how it failed.
  bool Right() const {
    const bool ended = cudaDeviceSynchronize() == cudaSuccess;
    cudaGetLastError();
    if (!ended) return false;
    std::vector<float> got(kWarpgroupSize * kSums);
    cudaMemcpy(got.data(), out_, got.size() * sizeof(float), cudaMemcpyDeviceToHost);
    for (int thread = 0; thread < kWarpgroupSize; ++thread) {
      for (int i = 0; i < kSums; ++i) {
        float want = 0.0f;
        for (int t = 0; t < kSteps * kTokens; ++t) {
          want += ValueOf(t, i / 4 * 8 + thread % 4 * 2 + i % 2);
        }
        if (!(got[static_cast<size_t>(thread * kSums + i)] == want)) return false;
      }
    }
    return true;
  }

 private:
  static float ValueOf(int token, int column) {
    return static_cast<float>((token * 5 + column * 3 + token * column) % 11);
  }
  static uint16_t Bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return static_cast<uint16_t>(bits >> 16);
  }

  void* data_ = nullptr;
  void* out_ = nullptr;
  Params params_{};
};

template <Mistake kMistake>
int Wrong() {
  LaunchShape shape;
  shape.threads = kWarpgroupSize + kWarpSize;
  shape.shared_bytes = kBarriersAt + 2 * kStages * kBarrierBytes;
  int wrong = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    emulator::SetSeed(seed);
    const Values values;
    REQUIRE(Launch(SumKernel<kMistake>, shape, values.params()).ok());
    wrong += values.Right() ? 0 : 1;
  }
  return wrong;
}

TEST_CASE("boxes and products that are waited for are right whatever the seed") {
  CHECK(Wrong<Mistake::kNone>() == 0);
}

TEST_CASE("a box that nobody waits for shows") {
  CHECK(Wrong<Mistake::kNoWaitForCopy>() == kSeeds);
}

TEST_CASE("a stage that is given back while products read it shows") {
  CHECK(Wrong<Mistake::kFreedEarly>() >= kSeeds / 2);
}

TEST_CASE("sums that are read before the wait show") {
  CHECK(Wrong<Mistake::kReadEarly>() == kSeeds);
}

TEST_CASE("an operand that changes before the wait shows") {
  CHECK(Wrong<Mistake::kOperandReused>() >= kSeeds / 2);
}

TEST_CASE("bytes that never come are a deadlock, which is told") {
  CHECK(Wrong<Mistake::kOneByteMore>() == kSeeds);
}

constexpr int kMatrices = 4, kSide = 8;
constexpr int kTurnedRow = kMatrices * kSide;  // elements: the matrices side by side

struct TurnParams {
  uint16_t* out;  // [kSide, kTurnedRow]
};

// Element (row, column) of matrix m is 100 m + 10 row + column.
template <bool kWaits>
__global__ void TurnKernel(const __grid_constant__ TurnParams p) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  auto* const turned = reinterpret_cast<uint16_t*>(DynamicShared());
  if (threadIdx.x < kWarpSize) {
    uint32_t words[kMatrices];
    for (uint32_t m = 0; m < kMatrices; ++m) {
      const uint32_t low = 100 * m + 10 * (lane / 4) + lane % 4 * 2;
      words[m] = low | (low + 1) << 16;
    }
    StoreMatrix4Transposed(SharedAddress(turned) + lane % 8 * kTurnedRow * 2 + lane / 8 * 16,
                           words);
  }
  if (kWaits) __syncthreads();
  if (threadIdx.x < kWarpSize) return;
  for (int i = lane; i < kSide * kTurnedRow; i += kWarpSize) p.out[i] = turned[i];
}

// Seeds with which memory holds something else than column c of matrix m at (c, 8 m).
template <bool kWaits>
int TurnedWrong() {
  LaunchShape shape;
  shape.threads = 2 * kWarpSize;
  shape.shared_bytes = kSide * kTurnedRow * 2;
  int wrong = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    emulator::SetSeed(seed);
    std::vector<uint16_t> got(kSide * kTurnedRow);
    void* out = nullptr;
    REQUIRE(cudaMalloc(&out, got.size() * 2) == cudaSuccess);
    REQUIRE(Launch(TurnKernel<kWaits>, shape, TurnParams{static_cast<uint16_t*>(out)}).ok());
    REQUIRE(cudaMemcpy(got.data(), out, got.size() * 2, cudaMemcpyDeviceToHost) == cudaSuccess);
    cudaFree(out);
    bool right = true;
    for (size_t column = 0; column < kSide; ++column) {
      for (size_t i = 0; i < kTurnedRow; ++i) {
        right =
            right && got[column * kTurnedRow + i] == 100 * (i / kSide) + 10 * (i % kSide) + column;
      }
    }
    wrong += right ? 0 : 1;
  }
  return wrong;
}

TEST_CASE("stmatrix.trans puts columns of the warp's matrices into rows of memory") {
  CHECK(TurnedWrong<true>() == 0);
}

TEST_CASE("matrices that are read before a barrier show") {
  CHECK(TurnedWrong<false>() >= kSeeds / 4);
}

}  // namespace
}  // namespace octavo::cuda

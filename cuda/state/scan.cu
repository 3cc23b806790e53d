// ssm_scan: the recurrence of Mamba2, one token after another.
//
// Shapes: out, x [N, H, P], dt [N, H], b and c [N, G, S], state [B, H, S, P] float32. Grid: a CTA
// for each row, head and 32 of its values. Lane l has value l; a warp has 32 of the S entries of
// its state, in registers from the row's first token to its last, so that the state is read and
// written once. Tokens go in groups: their b and c are fetched together, their sums over S meet in
// shared memory. Sums are added in the order of the warps: the bits do not depend on chunks or
// company.
//
// Bound by the bytes of the state for a decode; by the arithmetic of one token after another for a
// prompt (the matrix form over chunks would be faster). Source: Dao and Gu, 2024.
#include <string>

#include "base/ops_check.h"
#include "common/element.cuh"
#include "common/launch.h"
#include "common/ptx.cuh"
#include "octavo/cuda_layers.h"
#include "state/rows.cuh"

namespace octavo::cuda {
namespace {

constexpr int kEntries = 32;  // of S, of a warp
constexpr int kGroup = 8;     // tokens
constexpr int kMaxState = 512;
constexpr int kMaxWarps = kMaxState / kEntries;

struct ScanParams {
  StateRows rows;
  const char* x;
  const char* dt;
  const char* b;
  const char* c;
  char* out;
  const char* a_log;
  const char* dt_bias;
  const char* skip;
  float* state;
  int64_t x_stride, x_head, out_stride, out_head;  // bytes
  int64_t dt_stride;
  int64_t b_stride, b_group, c_stride, c_group;
  int64_t block_stride, head_stride;  // of the state, elements
  int32_t heads, dim, size;
  int32_t group_heads;
  int32_t dim_tiles;
};

// What a group of tokens has in common for all lanes. Dynamic: it grows with the warps.
struct GroupMemory {
  float* b;        // [kGroup][warps * kEntries], zero beyond S
  float* c;        // as b
  float* partial;  // [kGroup][warps][32]: sums of c * state
  float* step;     // [kGroup]
  float* decay;    // [kGroup]
};
constexpr int MemoryFloats(int warps) {
  return kGroup * (2 * warps * kEntries + warps * kWarpSize + 2);
}

template <typename T>
__device__ __forceinline__ float ElementAt(const char* row, int64_t i) {
  return ToFloat(reinterpret_cast<const T*>(row)[i]);
}

// torch's softplus: the line itself where e^x is beyond what 1 + e^x can tell from it.
__device__ __forceinline__ float Softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

__device__ __forceinline__ GroupMemory Carve(float* shared, int warps) {
  GroupMemory m;
  m.b = shared;
  m.c = m.b + kGroup * warps * kEntries;
  m.partial = m.c + kGroup * warps * kEntries;
  m.step = m.partial + kGroup * warps * kWarpSize;
  m.decay = m.step + kGroup;
  return m;
}

// Brings b, c and step sizes of the tokens [first, first + count). Ends with a barrier.
template <typename T>
__device__ __forceinline__ void LoadGroup(const ScanParams& p, const GroupMemory& m, int head,
                                          int64_t first, int count) {
  const int width = static_cast<int>(blockDim.x);  // warps * kEntries
  const int g = head / p.group_heads, s = threadIdx.x;
  for (int t = 0; t < count; ++t) {
    const int64_t token = first + t;
    m.b[t * width + s] =
        s < p.size ? ElementAt<T>(p.b + token * p.b_stride + g * p.b_group, s) : 0.0f;
    m.c[t * width + s] =
        s < p.size ? ElementAt<T>(p.c + token * p.c_stride + g * p.c_group, s) : 0.0f;
  }
  if (s < count) {
    const float dt = ElementAt<T>(p.dt + (first + s) * p.dt_stride, head);
    const float step = Softplus(dt + ElementAt<T>(p.dt_bias, head));
    m.step[s] = step;
    m.decay[s] = expf(-expf(ElementAt<T>(p.a_log, head)) * step);
  }
  __syncthreads();
}

// Moves this warp's entries by one token and gives their part of its sum.
__device__ __forceinline__ float AddToken(float (&state)[kEntries], const float* b, const float* c,
                                          float scaled, float decay) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kEntries; i += 4) {
    const float4 in = *reinterpret_cast<const float4*>(b + i);
    const float4 read = *reinterpret_cast<const float4*>(c + i);
    state[i] = fmaf(scaled, in.x, state[i] * decay);
    state[i + 1] = fmaf(scaled, in.y, state[i + 1] * decay);
    state[i + 2] = fmaf(scaled, in.z, state[i + 2] * decay);
    state[i + 3] = fmaf(scaled, in.w, state[i + 3] * decay);
    sum = fmaf(state[i], read.x, sum);
    sum = fmaf(state[i + 1], read.y, sum);
    sum = fmaf(state[i + 2], read.z, sum);
    sum = fmaf(state[i + 3], read.w, sum);
  }
  return sum;
}

// A CTA's head of a row, and this lane's value of it.
template <typename T>
struct HeadScan {
  const ScanParams& p;
  const GroupMemory m;
  int head, value, warps;
  bool live;  // whether there is such a value
  float state[kEntries];

  __device__ __forceinline__ HeadScan(const ScanParams& params, float* shared)
      : p(params), m(Carve(shared, blockDim.x / kWarpSize)), warps(blockDim.x / kWarpSize) {
    head = static_cast<int>(blockIdx.x) / p.dim_tiles;
    value = (static_cast<int>(blockIdx.x) - head * p.dim_tiles) * kWarpSize +
            static_cast<int>(threadIdx.x) % kWarpSize;
    live = value < p.dim;
  }

  // This lane's entry i of a block's state; null where there is none.
  __device__ __forceinline__ float* EntryAt(int32_t block, int i) const {
    const int s = static_cast<int>(threadIdx.x) / kWarpSize * kEntries + i;
    if (!live || s >= p.size) return nullptr;
    return p.state + block * p.block_stride + head * p.head_stride + int64_t{s} * p.dim + value;
  }

  __device__ __forceinline__ void Load(int32_t block) {
#pragma unroll
    for (int i = 0; i < kEntries; ++i) {
      const float* const from = block < 0 ? nullptr : EntryAt(block, i);
      state[i] = from == nullptr ? 0.0f : *from;
    }
  }
  __device__ __forceinline__ void Save(int32_t block) {
#pragma unroll
    for (int i = 0; i < kEntries; ++i) {
      float* const to = EntryAt(block, i);
      if (to != nullptr) *to = state[i];
    }
  }

  __device__ __forceinline__ float InputAt(int64_t token) const {
    return live ? ElementAt<T>(p.x + token * p.x_stride + head * p.x_head, value) : 0.0f;
  }

  // Tokens [first, first + count) of the step, a group.
  __device__ __forceinline__ void Group(int64_t first, int count) {
    LoadGroup<T>(p, m, head, first, count);
    const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
    const int width = warps * kEntries;
    for (int t = 0; t < count; ++t) {
      const float scaled = InputAt(first + t) * m.step[t];
      const int at = t * width + warp * kEntries;
      m.partial[(t * warps + warp) * kWarpSize + lane] =
          AddToken(state, m.b + at, m.c + at, scaled, m.decay[t]);
    }
    __syncthreads();
    const float skip = ElementAt<T>(p.skip, head);
    for (int t = warp; t < count && live; t += warps) {
      float sum = 0.0f;
      for (int w = 0; w < warps; ++w) sum += m.partial[(t * warps + w) * kWarpSize + lane];
      T* const out =
          reinterpret_cast<T*>(p.out + (first + t) * p.out_stride + head * p.out_head) + value;
      Store(out, fmaf(InputAt(first + t), skip, sum));
    }
    __syncthreads();  // the next group overwrites what was read here
  }
};

template <typename T>
__global__ void __launch_bounds__(kMaxWarps* kWarpSize)
    ScanKernel(const __grid_constant__ ScanParams p) {
  GridDependencyWait();
  GridDependencyLaunch();
  const StateRows::Row row = p.rows.At(static_cast<int>(blockIdx.y));
  if (row.tokens == 0) return;
  HeadScan<T> scan(p, reinterpret_cast<float*>(DynamicShared()));
  scan.Load(row.source);
#pragma unroll 1
  for (int first = 0; first < row.tokens; first += kGroup) {
    scan.Group(int64_t{row.first} + first, Min(kGroup, row.tokens - first));
  }
  scan.Save(row.target);
}

template <typename T>
Status LaunchScan(const ScanParams& p, cudaStream_t stream) {
  const int warps = CeilDiv(p.size, kEntries);
  LaunchShape shape;
  shape.grid = static_cast<unsigned>(p.heads * p.dim_tiles);
  shape.grid_y = static_cast<unsigned>(p.rows.rows);
  shape.threads = static_cast<unsigned>(warps * kWarpSize);
  shape.shared_bytes = MemoryFloats(warps) * static_cast<int>(sizeof(float));
  shape.stream = stream;
  return LaunchDependent(ScanKernel<T>, shape, p);
}

Status CheckFits(const SsmScanArgs& a) {
  constexpr int64_t kMaxGridY = 65535, kMost = INT64_C(1) << 30;
  const int64_t rows = a.source.shape[0];
  if (a.b.shape[2] > kMaxState) {
    return InvalidOp("ssm_scan", "the state size is " + std::to_string(a.b.shape[2]) +
                                     ", need at most 512 on CUDA");
  }
  const int64_t tiles = a.x.shape[1] * CeilDiv(a.x.shape[2], int64_t{kWarpSize});
  if (rows > kMaxGridY) {
    return InvalidOp("ssm_scan",
                     "source has " + std::to_string(rows) + " rows, need at most 65535 on CUDA");
  }
  if (a.x.shape[0] > kMost || tiles > INT32_MAX || a.state.shape[0] > INT32_MAX) {
    return InvalidOp("ssm_scan", "x or state is too large: cut it");
  }
  return Status::Ok();
}

}  // namespace

Status SsmScan(const SsmScanArgs& a, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  OCTAVO_RETURN_IF_ERROR(CheckFits(a));
  if (a.x.num_elements() == 0 || a.source.shape[0] == 0) return Status::Ok();
  const int64_t size = DTypeSize(a.x.dtype);
  ScanParams p{};
  p.rows = {a.query_start.ptr<int32_t>(),
            a.source.ptr<int32_t>(),
            a.target.ptr<int32_t>(),
            static_cast<int32_t>(a.source.shape[0]),
            static_cast<int32_t>(a.x.shape[0]),
            static_cast<int32_t>(a.state.shape[0])};
  p.x = a.x.ptr<char>();
  p.dt = a.dt.ptr<char>();
  p.b = a.b.ptr<char>();
  p.c = a.c.ptr<char>();
  p.out = a.out.ptr<char>();
  p.a_log = a.a_log.ptr<char>();
  p.dt_bias = a.dt_bias.ptr<char>();
  p.skip = a.skip.ptr<char>();
  p.state = a.state.ptr<float>();
  p.x_stride = a.x.stride[0] * size;
  p.x_head = a.x.stride[1] * size;
  p.out_stride = a.out.stride[0] * size;
  p.out_head = a.out.stride[1] * size;
  p.dt_stride = a.dt.stride[0] * size;
  p.b_stride = a.b.stride[0] * size;
  p.b_group = a.b.stride[1] * size;
  p.c_stride = a.c.stride[0] * size;
  p.c_group = a.c.stride[1] * size;
  p.block_stride = a.state.stride[0];
  p.head_stride = a.state.stride[1];
  p.heads = static_cast<int32_t>(a.x.shape[1]);
  p.dim = static_cast<int32_t>(a.x.shape[2]);
  p.size = static_cast<int32_t>(a.b.shape[2]);
  p.group_heads = static_cast<int32_t>(a.x.shape[1] / a.b.shape[1]);
  p.dim_tiles = CeilDiv(p.dim, kWarpSize);
  switch (a.x.dtype) {
    case DType::kF32:
      return LaunchScan<float>(p, stream);
    case DType::kF16:
      return LaunchScan<__half>(p, stream);
    default:
      return LaunchScan<__nv_bfloat16>(p, stream);
  }
}

}  // namespace octavo::cuda

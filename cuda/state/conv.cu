// causal_conv1d: out[t] = silu(bias + sum over k of weight[k] * x[t - (K - 1) + k]) for each
// channel.
//
// Shapes: out, x [N, C], weight [C, K], state [B, K - 1, C]. Grid: x is cut into windows of tokens
// and of channels; a thread has a channel and walks its window, the last inputs in registers. It
// finds the rows of its tokens itself, so that long rows are cut as well as short ones are packed.
// Whoever computes a row's first token has read its past from the source's state, and then writes
// the target's, which may be the same memory: nobody else touches either. Bound by bytes: 2 * N * C
// elements, and the states.
#include "base/ops_check.h"
#include "common/element.cuh"
#include "common/launch.h"
#include "common/ptx.cuh"
#include "octavo/cuda_layers.h"
#include "state/rows.cuh"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kUsualTaps = 4, kMaxTaps = 8;
constexpr int kWindow = 8;  // tokens: few, because a decode's rows follow one another in it
static_assert(kWindow >= kMaxTaps - 1, "a row's first inputs reach no further than one window");

struct ConvParams {
  StateRows rows;
  const char* x;
  char* out;
  const char* weight;
  const char* bias;  // or null
  char* state;
  int64_t x_stride, out_stride, weight_stride;  // bytes
  int64_t block_stride, input_stride;           // of the state, bytes
  int32_t channels;
  int32_t taps;
};

template <typename T>
__device__ __forceinline__ float ElementAt(const char* row, int64_t i) {
  return ToFloat(reinterpret_cast<const T*>(row)[i]);
}

// The channel of one thread, with room for kTaps of them: fewer leave the first places empty.
template <typename T, int kTaps>
struct Channel {
  const ConvParams& p;
  int32_t c;
  int32_t empty;
  float weight[kTaps];
  float past[kTaps];  // the last inputs, the newest last
  float bias;

  __device__ __forceinline__ Channel(const ConvParams& params, int32_t channel)
      : p(params), c(channel), empty(kTaps - params.taps) {
#pragma unroll
    for (int k = 0; k < kTaps; ++k) {
      weight[k] = k < empty ? 0.0f : ElementAt<T>(p.weight + c * p.weight_stride, k - empty);
      past[k] = 0.0f;
    }
    bias = p.bias == nullptr ? 0.0f : ElementAt<T>(p.bias, c);
  }

  __device__ __forceinline__ char* StateAt(int32_t block, int input) const {
    return p.state + block * p.block_stride + input * p.input_stride;
  }

  // Input i of a row; what comes before its first lies in its source.
  __device__ __forceinline__ float Input(const StateRows::Row& row, int i) const {
    if (i >= 0) return ElementAt<T>(p.x + (int64_t{row.first} + i) * p.x_stride, c);
    return row.source < 0 ? 0.0f : ElementAt<T>(StateAt(row.source, p.taps - 1 + i), c);
  }

  // Tokens [begin, end) of a row. REQUIRES: past holds the inputs before `begin`.
  __device__ __forceinline__ void Walk(const StateRows::Row& row, int begin, int end) {
    for (int i = begin; i < end; ++i) {
      past[kTaps - 1] = ElementAt<T>(p.x + (int64_t{row.first} + i) * p.x_stride, c);
      float sum = bias;
#pragma unroll
      for (int k = 0; k < kTaps; ++k) {
        if (k >= empty) sum = fmaf(weight[k], past[k], sum);
      }
      Store(reinterpret_cast<T*>(p.out + (int64_t{row.first} + i) * p.out_stride) + c,
            sum / (1.0f + expf(-sum)));
#pragma unroll
      for (int k = 0; k + 1 < kTaps; ++k) past[k] = past[k + 1];
    }
  }

  __device__ __forceinline__ void Run(const StateRows::Row& row, int begin, int end) {
    float last[kTaps - 1];
#pragma unroll
    for (int k = 0; k < kTaps - 1; ++k) {
      if (k < empty) continue;
      past[k] = Input(row, begin - (kTaps - 1) + k);
      if (begin == 0) last[k] = Input(row, row.tokens - (kTaps - 1) + k);
    }
    if (begin == 0) {
#pragma unroll
      for (int k = 0; k < kTaps - 1; ++k) {
        if (k < empty) continue;
        Store(reinterpret_cast<T*>(StateAt(row.target, k - empty)) + c, last[k]);
      }
    }
    Walk(row, begin, end);
  }
};

template <typename T, int kTaps>
__global__ void __launch_bounds__(kThreads) ConvKernel(const __grid_constant__ ConvParams p) {
  GridDependencyWait();
  GridDependencyLaunch();
  const int32_t c = static_cast<int32_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (c >= p.channels) return;
  const int32_t total = Min(p.rows.query_start[p.rows.rows], p.rows.tokens);
  const int32_t begin = static_cast<int32_t>(blockIdx.x) * kWindow;
  const int32_t end = Min(begin + kWindow, total);
  if (begin >= end) return;
  Channel<T, kTaps> channel(p, c);
  // Rows without tokens end where they begin, so they are passed over.
  for (int r = FindOwner(p.rows.query_start, p.rows.rows, begin); r < p.rows.rows; ++r) {
    const StateRows::Row row = p.rows.At(r);
    if (row.first >= end) return;
    // What still reads the source's state is computed where the target's is written.
    const bool opens = row.first >= begin;
    const int head = Min(row.tokens, p.taps - 1), to = Min(end - row.first, row.tokens);
    const int from = opens ? 0 : Max(begin - row.first, p.taps - 1);
    if (from < row.tokens && (opens || from < to)) {
      channel.Run(row, from, opens ? Max(to, head) : to);
    }
  }
}

template <typename T>
Status LaunchConv(const ConvParams& p, cudaStream_t stream) {
  LaunchShape shape;
  shape.grid = static_cast<unsigned>(CeilDiv(p.rows.tokens, kWindow));
  shape.grid_y = static_cast<unsigned>(CeilDiv(p.channels, kThreads));
  shape.threads = kThreads;
  shape.stream = stream;
  return p.taps <= kUsualTaps ? LaunchDependent(ConvKernel<T, kUsualTaps>, shape, p)
                              : LaunchDependent(ConvKernel<T, kMaxTaps>, shape, p);
}

}  // namespace

Status CausalConv1d(const CausalConv1dArgs& a, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  constexpr int64_t kMost = INT64_C(1) << 30, kMaxGridY = 65535;
  const int64_t size = DTypeSize(a.x.dtype);
  if (a.x.shape[0] > kMost || a.x.shape[1] > kMaxGridY * kThreads || a.source.shape[0] > kMost ||
      a.state.shape[0] > INT32_MAX) {
    return InvalidOp("causal_conv1d", "x, source or state is too large: cut it");
  }
  if (a.out.data != nullptr && a.out.data == a.x.data) {
    return InvalidOp("causal_conv1d", "out is x, need a tensor of its own on CUDA");
  }
  if (a.x.num_elements() == 0 || a.source.shape[0] == 0) return Status::Ok();
  ConvParams p{};
  p.rows = {a.query_start.ptr<int32_t>(),
            a.source.ptr<int32_t>(),
            a.target.ptr<int32_t>(),
            static_cast<int32_t>(a.source.shape[0]),
            static_cast<int32_t>(a.x.shape[0]),
            static_cast<int32_t>(a.state.shape[0])};
  p.x = a.x.ptr<char>();
  p.out = a.out.ptr<char>();
  p.weight = a.weight.ptr<char>();
  p.bias = a.bias.has_value() ? a.bias->ptr<char>() : nullptr;
  p.state = a.state.ptr<char>();
  p.x_stride = a.x.stride[0] * size;
  p.out_stride = a.out.stride[0] * size;
  p.weight_stride = a.weight.stride[0] * size;
  p.block_stride = a.state.stride[0] * size;
  p.input_stride = a.state.stride[1] * size;
  p.channels = static_cast<int32_t>(a.x.shape[1]);
  p.taps = static_cast<int32_t>(a.weight.shape[1]);
  switch (a.x.dtype) {
    case DType::kF32:
      return LaunchConv<float>(p, stream);
    case DType::kF16:
      return LaunchConv<__half>(p, stream);
    default:
      return LaunchConv<__nv_bfloat16>(p, stream);
  }
}

}  // namespace octavo::cuda

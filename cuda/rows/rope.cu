// rope: turns the first R dims of every head of q and k by the token's angles, in place.
//
// Shapes: q [N, Hq, D], k [N, Hk, D], position [N], cos_sin [max_pos, R]. Grid: a CTA a token; a
// thread turns one pair at a time. A token whose position is outside the table stays as it is.
// Bound by bytes: 2 * N * (Hq + Hk) * R elements. The usual heads go to qkv_pairs.cu; this is for
// partial, interleaved and odd ones. Source: Su et al., 2021.
#include "base/ops_check.h"
#include "common/element.cuh"
#include "common/launch.h"
#include "common/ptx.cuh"
#include "common/rows.h"
#include "octavo/cuda_ops.h"
#include "rows/qkv.h"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;

struct RopeParams {
  char* x[2];  // q, k
  RowStrides stride[2];
  const int32_t* position;
  RotaryTable table;
  int32_t q_heads;
  int32_t heads;  // of q and k together
};

template <typename T>
__global__ void __launch_bounds__(kThreads) RopeKernel(const __grid_constant__ RopeParams p) {
  GridDependencyWait();
  GridDependencyLaunch();
  const int64_t token = blockIdx.x;
  const float* const cos = p.table.Of(p.position[token]);
  if (cos == nullptr) return;
  const int half = p.table.half;
  for (int i = threadIdx.x; i < p.heads * half; i += kThreads) {
    const int head = i / half, pair = i - head * half;
    const bool is_q = head < p.q_heads;
    char* const row =
        is_q ? p.x[0] + token * p.stride[0].token + head * p.stride[0].head
             : p.x[1] + token * p.stride[1].token + (head - p.q_heads) * p.stride[1].head;
    const PairPlace at = PlaceOfPair(pair, half, p.table.interleaved);
    T* const first = reinterpret_cast<T*>(row) + at.first;
    T* const second = reinterpret_cast<T*>(row) + at.second;
    float a, b;
    Rotate(ToFloat(*first), ToFloat(*second), cos[pair], cos[pair + half], &a, &b);
    Store(first, a);
    Store(second, b);
  }
}

// The same job as the pair kernel sees it: no cache, no norms.
QkvParams PairParams(const RopeArgs& a, const RopeParams& r) {
  QkvParams p{};
  p.q = r.x[0];
  p.k = r.x[1];
  p.q_stride = r.stride[0];
  p.k_stride = r.stride[1];
  p.position = r.position;
  p.table = r.table;
  p.tokens = a.q.shape[0];
  p.token_heads = r.heads;
  p.q_heads = r.q_heads;
  p.kv_heads = r.heads - r.q_heads;
  p.head_dim = static_cast<int32_t>(a.q.shape[2]);
  return p;
}

}  // namespace

Status Rope(const RopeArgs& a, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  RopeParams p{};
  const TensorView* views[] = {&a.q, &a.k};
  for (int i = 0; i < 2; ++i) {
    p.x[i] = views[i]->ptr<char>();
    p.stride[i] = StridesOf(*views[i]);
  }
  p.position = a.position.ptr<int32_t>();
  p.table = {a.cos_sin.ptr<float>(), a.cos_sin.stride[0], a.cos_sin.shape[0],
             static_cast<int32_t>(a.cos_sin.shape[1] / 2), a.interleaved};
  p.q_heads = static_cast<int32_t>(a.q.shape[1]);
  p.heads = static_cast<int32_t>(a.q.shape[1] + a.k.shape[1]);
  if (a.q.shape[0] == 0 || p.heads == 0 || p.table.half == 0) return Status::Ok();
  if (a.q.shape[0] > INT32_MAX) return InvalidOp("rope", "q has 2^31 tokens or more: cut it");
  const bool wide = WideRows(a.q, a.q.shape[2]) && WideRows(a.k, a.q.shape[2]);
  const QkvParams pairs = PairParams(a, p);
  if (FitsPairs(a.q.dtype, pairs, wide)) return LaunchPairs(a.q.dtype, pairs, stream);
  LaunchShape shape;
  shape.grid = static_cast<unsigned>(a.q.shape[0]);
  shape.threads = kThreads;
  shape.stream = stream;
  switch (a.q.dtype) {
    case DType::kF32:
      return LaunchDependent(RopeKernel<float>, shape, p);
    case DType::kF16:
      return LaunchDependent(RopeKernel<__half>, shape, p);
    default:
      return LaunchDependent(RopeKernel<__nv_bfloat16>, shape, p);
  }
}

}  // namespace octavo::cuda

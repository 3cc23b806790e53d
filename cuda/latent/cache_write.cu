// cache[block, place] = [latent | rope][token] with block = slot / bs, place = slot % bs.
//
// Shapes: latent [N, C], rope [N, R]; cache [B, bs, C + R]; slot [N] int64. Only bytes move. Grid:
// a thread for each unit of a token's vector, 16 bytes where every part is aligned to that, else
// one element. Bound by bytes: reads and writes N * (C + R) elements.
#include "base/ops_check.h"
#include "common/launch.h"
#include "common/ptx.cuh"
#include "common/rows.h"
#include "octavo/cuda_layers.h"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;

// Strides in bytes.
struct WriteParams {
  const char* latent;
  const char* rope;
  char* cache;
  const int64_t* slot;
  int64_t latent_stride, rope_stride;
  int64_t block_stride, place_stride;
  int64_t slots;  // B * bs
  int64_t block_size;
  int64_t units;         // of all tokens
  int32_t token_units;   // of a vector
  int32_t latent_units;  // of its first part
};

template <typename Unit>
__global__ void __launch_bounds__(kThreads) WriteKernel(const __grid_constant__ WriteParams p) {
  GridDependencyWait();
  GridDependencyLaunch();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= p.units) return;
  const int64_t token = i / p.token_units;
  const auto unit = static_cast<int32_t>(i - token * p.token_units);
  const int64_t slot = p.slot[token];
  // One unsigned comparison refuses negative slots and those beyond the cache.
  if (static_cast<uint64_t>(slot) >= static_cast<uint64_t>(p.slots)) return;
  const int64_t block = slot / p.block_size;
  Unit* const to = reinterpret_cast<Unit*>(p.cache + block * p.block_stride +
                                           (slot - block * p.block_size) * p.place_stride);
  const char* const from =
      unit < p.latent_units ? p.latent + token * p.latent_stride : p.rope + token * p.rope_stride;
  to[unit] =
      reinterpret_cast<const Unit*>(from)[unit < p.latent_units ? unit : unit - p.latent_units];
}

template <typename Unit>
Status LaunchWrite(WriteParams p, int64_t tokens, int64_t latent_bytes, int64_t rope_bytes,
                   cudaStream_t stream) {
  constexpr int64_t kSize = sizeof(Unit);
  p.latent_units = static_cast<int32_t>(latent_bytes / kSize);
  p.token_units = static_cast<int32_t>((latent_bytes + rope_bytes) / kSize);
  p.units = tokens * p.token_units;
  const int64_t grid = (p.units + kThreads - 1) / kThreads;
  if (grid > INT32_MAX) return InvalidOp("latent_cache_write", "latent has too many rows: cut it");
  LaunchShape shape;
  shape.grid = static_cast<unsigned>(grid);
  shape.threads = kThreads;
  shape.stream = stream;
  return LaunchDependent(WriteKernel<Unit>, shape, p);
}

}  // namespace

Status LatentCacheWrite(const LatentCacheWriteArgs& a, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  const int64_t tokens = a.latent.shape[0], size = DTypeSize(a.cache.dtype);
  if (tokens == 0) return Status::Ok();
  WriteParams p{};
  p.latent = a.latent.ptr<char>();
  p.rope = a.rope.ptr<char>();
  p.cache = a.cache.ptr<char>();
  p.slot = a.slot.ptr<int64_t>();
  p.latent_stride = StridesOf(a.latent).token;
  p.rope_stride = StridesOf(a.rope).token;
  p.block_stride = a.cache.stride[0] * size;
  p.place_stride = a.cache.stride[1] * size;
  p.slots = a.cache.shape[0] * a.cache.shape[1];
  p.block_size = a.cache.shape[1];
  const int64_t latent = a.latent.shape[1] * size, rope = a.rope.shape[1] * size;
  const bool wide = WideRows(a.latent, a.latent.shape[1]) && WideRows(a.rope, a.rope.shape[1]) &&
                    WideRows(a.cache, a.cache.shape[2]);
  if (wide) return LaunchWrite<uint4>(p, tokens, latent, rope, stream);
  if (size == 4) return LaunchWrite<uint32_t>(p, tokens, latent, rope, stream);
  return LaunchWrite<uint16_t>(p, tokens, latent, rope, stream);
}

}  // namespace octavo::cuda

// The CUDA cache write beside the CPU op, byte for byte. Needs a CUDA device; without one every
// case is skipped.
// docs/guides/add-a-kernel.md says how to build and run it.
#include <algorithm>
#include <numeric>

#include "cpu/tensor.h"
#include "device.h"
#include "doctest/doctest.h"
#include "octavo/cuda_ops.h"

namespace octavo::cuda {
namespace {

using cpu::Column;
using cpu::Tensor;

struct Shape {
  int64_t tokens, heads, dim, blocks, block_size, gap;
};

TEST_CASE("the CUDA cache write leaves the same bytes as the CPU's" * doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(1);
  // A gap of 8 or 0 elements keeps rows aligned to 16 bytes; 1 and 3 do not; a dim of 20 has odd
  // rows.
  for (const Shape s :
       {Shape{1, 1, 64, 3, 16, 0}, Shape{37, 8, 128, 20, 16, 8}, Shape{300, 3, 80, 64, 8, 1},
        Shape{5, 2, 20, 4, 5, 3}, Shape{0, 2, 64, 4, 16, 0}, Shape{70, 40, 256, 9, 32, 0}}) {
    for (const DType dtype : cpu::kFloatTypes) {
      CAPTURE(s.tokens);
      CAPTURE(s.dim);
      Tensor k(dtype, {s.tokens, s.heads, s.dim}, s.gap),
          v(dtype, {s.tokens, s.heads, s.dim}, s.gap);
      Tensor cache(dtype, {s.blocks, 2, s.heads, s.block_size, s.dim}, s.gap);
      k.Randomize(rng);
      v.Randomize(rng);
      std::vector<int64_t> slot(size_t(s.blocks * s.block_size));
      std::iota(slot.begin(), slot.end(), 0);
      std::shuffle(slot.begin(), slot.end(), rng);
      slot.resize(static_cast<size_t>(s.tokens));
      for (size_t i = 0; i < slot.size(); i += 7) slot[i] = -1;

      const OnDevice dk(k), dv(v), dcache(cache);
      const OnDevice dslot(Column(slot), slot.data(), slot.size() * sizeof(int64_t));
      const Status done = CacheWrite({dk.view(), dv.view(), dcache.view(), dslot.view()}, nullptr);
      INFO(done.message());
      REQUIRE(done.ok());
      REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
      REQUIRE(cpu::CacheWrite({k.view(), v.view(), cache.view(), Column(slot)}).ok());
      CHECK(dcache.Bytes() == cache.bytes());
    }
  }
}

TEST_CASE("the CUDA cache write skips slots beyond the cache" * doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(2);
  Tensor k(DType::kBF16, {4, 2, 64}), cache(DType::kBF16, {2, 2, 2, 16, 64});
  k.Randomize(rng);
  std::vector<int64_t> slot = {32, INT64_MAX, INT64_MIN, 1 << 20};
  const OnDevice dk(k), dcache(cache);
  const OnDevice dslot(Column(slot), slot.data(), slot.size() * sizeof(int64_t));
  REQUIRE(CacheWrite({dk.view(), dk.view(), dcache.view(), dslot.view()}, nullptr).ok());
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(dcache.Bytes() == cache.bytes());
}

TEST_CASE("the CUDA cache write refuses what the CPU's refuses, without a device") {
  Tensor k(DType::kF32, {2, 3, 64}), cache(DType::kF32, {4, 2, 2, 16, 64});
  std::vector<int64_t> slot = {0, 1};
  CHECK(cpu::Refused(CacheWrite({k.view(), k.view(), cache.view(), Column(slot)}, nullptr),
                     "3 heads"));
}

}  // namespace
}  // namespace octavo::cuda

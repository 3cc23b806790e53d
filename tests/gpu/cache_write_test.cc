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

// Every number of e4m3 and its neighbours in float32, the middles between two, and the ends.
std::vector<float> Probes() {
  std::vector<float> all = {INFINITY, -INFINITY, 0.0f, -0.0f, 464.0f, 465.0f, 3e38f, 0x1p-149f};
  for (int code = 0; code < 0x7e; ++code) {
    const double low = cpu::FromE4m3(static_cast<uint8_t>(code));
    const double high = cpu::FromE4m3(static_cast<uint8_t>(code + 1));
    for (const double x : {low, (low + high) / 2}) {
      const auto f = static_cast<float>(x);
      for (const float y : {std::nextafter(f, -INFINITY), f, std::nextafter(f, INFINITY)}) {
        all.push_back(y);
        all.push_back(-y);
      }
    }
  }
  return all;
}

TEST_CASE("the CUDA cache write stores in fp8 what the CPU's does" * doctest::skip(!HasDevice())) {
  const std::vector<float> probes = Probes();
  std::mt19937_64 rng(3);
  for (const int64_t gap : {0, 3}) {  // wide accesses, and one element at a time
    for (const DType dtype : cpu::kFloatTypes) {
      for (const float scale : {1.0f, 0.3f}) {
        constexpr int64_t kTokens = 40, kHeads = 3, kDim = 64;
        Tensor k(dtype, {kTokens, kHeads, kDim}, gap), v(dtype, {kTokens, kHeads, kDim}, gap);
        Tensor cache(DType::kF8E4M3, {6, 2, kHeads, 8, kDim}, gap);
        size_t next = 0;
        k.Each([&](int64_t at) { k.Put(at, double(probes[next++ % probes.size()])); });
        v.Randomize(rng, 100.0);
        std::vector<int64_t> slot(kTokens);
        std::iota(slot.begin(), slot.end(), 3);
        const OnDevice dk(k), dv(v), dcache(cache);
        const OnDevice dslot(Column(slot), slot.data(), slot.size() * sizeof(int64_t));
        const CacheWriteArgs a{dk.view(), dv.view(), dcache.view(), dslot.view(), scale, 0.9f};
        REQUIRE(CacheWrite(a, nullptr).ok());
        REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
        REQUIRE(
            cpu::CacheWrite({k.view(), v.view(), cache.view(), Column(slot), scale, 0.9f}).ok());
        CHECK(dcache.Bytes() == cache.bytes());
      }
    }
  }
}

TEST_CASE("a NaN is still one in a CUDA cache in fp8" * doctest::skip(!HasDevice())) {
  Tensor k(DType::kBF16, {1, 1, 64}), cache(DType::kF8E4M3, {1, 2, 1, 1, 64});  // all NaN
  cache.Each([&](int64_t at) { cache.Put(at, 1.0); });
  std::vector<int64_t> slot = {0};
  const OnDevice dk(k), dcache(cache);
  const OnDevice dslot(Column(slot), slot.data(), sizeof(int64_t));
  REQUIRE(CacheWrite({dk.view(), dk.view(), dcache.view(), dslot.view()}, nullptr).ok());
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  for (int i = 0; i < 128; ++i) CHECK((dcache.Bytes()[size_t(i)] & 0x7f) == 0x7f);
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

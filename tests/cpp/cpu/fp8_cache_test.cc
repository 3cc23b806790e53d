// A KV cache in e4m3: what is stored of every number, what is read of every code, what is refused.
// Attention over such a cache is in attention_test.cc.
#include <cmath>
#include <cstring>

#include "cpu/tensor.h"
#include "doctest/doctest.h"

namespace octavo::cpu {
namespace {

constexpr int64_t kDim = 64;

// Every float around every number of e4m3 and around the middle between two of them, the ends of
// float32, and bits at random.
std::vector<float> Probes() {
  std::vector<float> all = {0.0f,       -0.0f,     INFINITY,   -INFINITY, NAN,    -NAN,
                            0x1p-149f,  0x1p-126f, 0x1p-10f,   3e38f,     -3e38f, 464.0f,
                            464.00003f, 479.9f,    0x1.8p-10f, 0x1p-9f,   0x1p-7f};
  for (int code = 0; code < 0x7e; ++code) {
    const double low = FromE4m3(static_cast<uint8_t>(code));
    const double high = FromE4m3(static_cast<uint8_t>(code + 1));
    for (const double x : {low, (low + high) / 2, high}) {
      const auto f = static_cast<float>(x);
      for (const float y : {std::nextafter(f, -INFINITY), f, std::nextafter(f, INFINITY)}) {
        all.push_back(y);
        all.push_back(-y);
      }
    }
  }
  std::mt19937_64 rng(1);
  while (all.size() < 200 * kDim) {
    const auto bits = static_cast<uint32_t>(rng());
    float f;
    std::memcpy(&f, &bits, 4);
    all.push_back(f);
  }
  return all;
}

TEST_CASE("a cache in fp8 takes the number nearest to each quotient") {
  const std::vector<float> probes = Probes();
  const int64_t tokens = static_cast<int64_t>(probes.size()) / kDim;
  for (const DType dtype : kFloatTypes) {
    Tensor k(dtype, {tokens, 1, kDim}), v(dtype, {tokens, 1, kDim}, 3);
    for (int64_t i = 0; i < tokens * kDim; ++i) {
      const auto x = static_cast<double>(probes[size_t(i)]);
      k.Set({i / kDim, 0, i % kDim}, x);
      v.Set({i / kDim, 0, i % kDim}, x);
    }
    std::vector<int64_t> slot;
    for (int64_t t = 0; t < tokens; ++t) slot.push_back(t);
    for (const float k_scale : {1.0f, 0.037f}) {
      ForEachIsa([&] {
        Tensor cache(DType::kF8E4M3, {tokens, 2, 1, 1, kDim}, 5);
        REQUIRE(CacheWrite({k.view(), v.view(), cache.view(), Column(slot), k_scale, 3.0f}).ok());
        int64_t wrong = 0;
        for (int64_t i = 0; i < tokens * kDim; ++i) {
          const int64_t t = i / kDim, d = i % kDim;
          const auto xk = static_cast<float>(k.At({t, 0, d})),
                     xv = static_cast<float>(v.At({t, 0, d}));
          const uint8_t* codes = cache.view().ptr<uint8_t>();
          wrong += codes[cache.Offset({t, 0, 0, 0, d})] != ToE4m3(double(xk / k_scale));
          wrong += codes[cache.Offset({t, 1, 0, 0, d})] != ToE4m3(double(xv / 3.0f));
        }
        CHECK(wrong == 0);
      });
    }
  }
}

// Attention of one query over one key is that key's value, whatever the score.
TEST_CASE("every code of a cache in fp8 is read exactly") {
  constexpr int64_t kHeads = 4;
  Tensor cache(DType::kF8E4M3, {1, 2, kHeads, 1, kDim});
  for (int code = 0; code < 256; ++code) {
    const int64_t h = code / kDim, d = code % kDim;
    cache.view().ptr<uint8_t>()[cache.Offset({0, 0, h, 0, d})] = 0x38;
    cache.view().ptr<uint8_t>()[cache.Offset({0, 1, h, 0, d})] = static_cast<uint8_t>(code);
  }
  std::vector<int32_t> table = {0}, row_slot = {0}, start = {0, 1}, length = {1};
  ForEachIsa([&] {
    Tensor q(DType::kF32, {1, kHeads, kDim}), out(DType::kF32, {1, kHeads, kDim});
    std::mt19937_64 rng(2);
    q.Randomize(rng);
    PagedAttentionArgs a;
    a.out = out.view();
    a.q = q.view();
    a.cache = cache.view();
    a.block_table = TensorView::Dense(table.data(), DType::kI32, {1, 1});
    a.row_slot = Column(row_slot);
    a.query_start = Column(start);
    a.seq_len = Column(length);
    a.v_scale = 0.5f;
    REQUIRE(PagedAttention(a).ok());
    for (int code = 0; code < 256; ++code) {
      CAPTURE(code);
      const double want = FromE4m3(static_cast<uint8_t>(code)) * 0.5;
      const double got = out.At({0, code / kDim, code % kDim});
      CHECK((std::isnan(want) ? std::isnan(got) : got == want));
    }
  });
}

// A head of the fused op ends as the ops one after another leave it.
TEST_CASE("norm_rope_cache stores in fp8 what rope and cache_write would") {
  std::mt19937_64 rng(3);
  Tensor q(DType::kBF16, {5, 4, kDim}), k(DType::kBF16, {5, 2, kDim}),
      v(DType::kBF16, {5, 2, kDim});
  for (Tensor* t : {&q, &k, &v}) t->Randomize(rng, 30.0);
  Tensor alone_q = q, alone_k = k, angles(DType::kF32, {9, kDim});
  angles.Randomize(rng, 0.7);
  std::vector<int32_t> position = {0, 8, 3, 3, 1};
  std::vector<int64_t> slot = {4, 0, -1, 7, 2};
  Tensor fused(DType::kF8E4M3, {4, 2, 2, 2, kDim}), apart = fused;
  NormRopeCacheArgs a{q.view(),      k.view(),     v.view(),    Column(position),
                      angles.view(), fused.view(), Column(slot)};
  a.k_scale = 0.2f;
  a.v_scale = 0.1f;
  REQUIRE(NormRopeCache(a).ok());
  REQUIRE(Rope({alone_q.view(), alone_k.view(), Column(position), angles.view()}).ok());
  REQUIRE(CacheWrite({alone_k.view(), v.view(), apart.view(), Column(slot), 0.2f, 0.1f}).ok());
  CHECK(fused.bytes() == apart.bytes());
  CHECK(q.bytes() == alone_q.bytes());
}

TEST_CASE("scales that no cache can have are refused by name") {
  Tensor k(DType::kF32, {1, 1, kDim}), cache(DType::kF8E4M3, {1, 2, 1, 1, kDim});
  Tensor plain(DType::kF32, {1, 2, 1, 1, kDim});
  std::vector<int64_t> slot = {0};
  const auto write = [&](const Tensor& to, float k_scale, float v_scale) {
    return CacheWrite({k.view(), k.view(), to.view(), Column(slot), k_scale, v_scale});
  };
  CHECK(Refused(write(cache, 0.0f, 1.0f), "k_scale is 0"));
  CHECK(Refused(write(cache, 1.0f, -2.0f), "v_scale is -2"));
  CHECK(Refused(write(cache, NAN, 1.0f), "k_scale"));
  CHECK(Refused(write(cache, 1.0f, INFINITY), "v_scale"));
  CHECK(Refused(write(plain, 2.0f, 1.0f), "need 1: only a cache of float8_e4m3 is scaled"));
  CHECK(write(plain, 1.0f, 1.0f).ok());
  Tensor half(DType::kF16, {1, 2, 1, 1, kDim});
  CHECK(Refused(write(half, 1.0f, 1.0f), "cache has dtype float16"));
  Tensor codes(DType::kF8E4M3, {1, 1, kDim});
  CHECK(Refused(CacheWrite({codes.view(), codes.view(), cache.view(), Column(slot)}),
                "k has dtype float8_e4m3"));
}

}  // namespace
}  // namespace octavo::cpu

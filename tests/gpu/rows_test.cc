// The row ops on CUDA beside float64 and, where both compute alike, the CPU ops' bytes.
#include <algorithm>
#include <functional>
#include <numeric>

#include "backend.h"
#include "cpu/tensor.h"
#include "device.h"
#include "octavo/cuda_ops.h"

namespace octavo::cuda {
namespace {

using cpu::Column;
using cpu::Tensor;

// Nothing was written between the rows of a tensor, where the bytes are those of NaN.
void CheckGaps(const Tensor& t) {
  std::vector<bool> element(t.bytes().size());
  const auto size = static_cast<size_t>(DTypeSize(t.view().dtype));
  t.Each([&](int64_t at) {
    std::fill_n(element.begin() + at * static_cast<int64_t>(size), size, true);
  });
  int64_t written = 0;
  for (size_t i = 0; i < element.size(); ++i) written += !element[i] && t.bytes()[i] != 0xff;
  CHECK(written == 0);
}

// Elements [n, i] of `got` are `want(n, i)`.
void CheckRows(const Tensor& got, const std::function<double(int64_t, int64_t)>& want) {
  int64_t wrong = 0;
  for (int64_t n = 0; n < got.dim(0); ++n) {
    for (int64_t i = 0; i < got.dim(1); ++i) {
      wrong += !cpu::Close(got.view().dtype, got.At({n, i}), want(n, i), 8.0);
    }
  }
  CHECK(wrong == 0);
}

double InverseRms(const Tensor& x, int64_t n, double eps) {
  double sum = 0.0;
  for (int64_t i = 0; i < x.dim(1); ++i) sum += x.At({n, i}) * x.At({n, i});
  return 1.0 / std::sqrt(sum / static_cast<double>(x.dim(1)) + eps);
}

struct NormShape {
  int64_t rows, size, gap;
};

// Aligned and not, a warp and a CTA a row, more than a thread keeps in registers, many rows.
const NormShape kNormShapes[] = {{1, 8, 0},      {37, 64, 8},  {5, 129, 3},  {9, 512, 0},
                                 {3, 576, 1},    {2, 4096, 8}, {2, 5120, 1}, {1, 20000, 0},
                                 {1030, 584, 8}, {0, 64, 0},   {1, 20001, 0}};

TEST_CASE("CUDA norms are float64's and leave the residual of the CPU's" *
          doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(1);
  for (const NormShape s : kNormShapes) {
    for (const DType dtype : cpu::kFloatTypes) {
      CAPTURE(s.rows);
      CAPTURE(s.size);
      CAPTURE(s.gap);
      CAPTURE(static_cast<int>(dtype));
      Tensor x(dtype, {s.rows, s.size}, s.gap), out(dtype, {s.rows, s.size}, s.gap);
      Tensor residual(dtype, {s.rows, s.size}, s.gap), weight(dtype, {s.size});
      for (Tensor* t : {&x, &residual, &weight}) t->Randomize(rng);
      const OnDevice dx(x), dout(out), dresidual(residual), dweight(weight);
      CheckDone(RmsNorm({dout.view(), dx.view(), dweight.view(), 1e-6f, 1.0f}, nullptr));
      dout.FetchTo(&out);
      CheckGaps(out);
      std::vector<double> inverse;
      for (int64_t n = 0; n < s.rows; ++n) inverse.push_back(InverseRms(x, n, 1e-6));
      CheckRows(out, [&](int64_t n, int64_t i) {
        return x.At({n, i}) * inverse[static_cast<size_t>(n)] * (weight.At({i}) + 1.0);
      });
      CheckDone(
          AddRmsNorm({dx.view(), dx.view(), dresidual.view(), dweight.view(), 1e-5f}, nullptr));
      REQUIRE(cpu::AddRmsNorm({out.view(), x.view(), residual.view(), weight.view(), 1e-5f}).ok());
      CHECK(dresidual.Bytes() == residual.bytes());
      dx.FetchTo(&out);
      CheckGaps(out);
      for (int64_t n = 0; n < s.rows; ++n) {
        inverse[static_cast<size_t>(n)] = InverseRms(residual, n, 1e-5);
      }
      CheckRows(out, [&](int64_t n, int64_t i) {
        return residual.At({n, i}) * inverse[static_cast<size_t>(n)] * weight.At({i});
      });
    }
  }
}

TEST_CASE("CUDA gated activations are float64's" * doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(2);
  for (const NormShape s : {NormShape{33, 8, 0}, NormShape{5, 77, 0}, NormShape{3, 1024, 8},
                            NormShape{7, 640, 3}, NormShape{0, 8, 0}}) {
    for (const DType dtype : cpu::kFloatTypes) {
      CAPTURE(s.size);
      Tensor in(dtype, {s.rows, 2 * s.size}, s.gap), out(dtype, {s.rows, s.size}, s.gap);
      in.Randomize(rng, 4.0);
      const OnDevice din(in), dout(out);
      const auto up = [&](int64_t n, int64_t i) { return in.At({n, s.size + i}); };
      CheckDone(SiluMul({dout.view(), din.view()}, nullptr));
      dout.FetchTo(&out);
      CheckGaps(out);
      CheckRows(out, [&](int64_t n, int64_t i) {
        const double g = in.At({n, i});
        return g / (1.0 + std::exp(-g)) * up(n, i);
      });
      CheckDone(GeluTanhMul({dout.view(), din.view()}, nullptr));
      dout.FetchTo(&out);
      CheckRows(out, [&](int64_t n, int64_t i) {
        const double g = in.At({n, i});
        return 0.5 * g * (1.0 + std::tanh(0.7978845608028654 * (g + 0.044715 * g * g * g))) *
               up(n, i);
      });
    }
  }
}

// Heads [first, first + count) of a tensor of heads.
TensorView Heads(TensorView v, int64_t first, int64_t count) {
  v.data = static_cast<char*>(v.data) + first * v.stride[1] * DTypeSize(v.dtype);
  v.shape[1] = count;
  return v;
}

std::vector<int32_t> Positions(std::mt19937_64& rng, int64_t tokens, int32_t bound) {
  std::vector<int32_t> position;
  for (int64_t i = 0; i < tokens; ++i) {
    position.push_back(static_cast<int32_t>(rng() % static_cast<uint64_t>(bound)));
  }
  return position;
}

TEST_CASE("CUDA rope leaves the bytes of the CPU's" * doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(3);
  for (const int64_t rotary : {64, 32, 6}) {
    for (const int64_t gap : {0, 8, 3}) {
      for (const bool interleaved : {false, true}) {
        for (const DType dtype : cpu::kFloatTypes) {
          CAPTURE(rotary);
          CAPTURE(gap);
          CAPTURE(interleaved);
          Tensor fused(dtype, {9, 5, 64}, gap), table(DType::kF32, {40, rotary});
          fused.Randomize(rng);
          table.Randomize(rng);
          std::vector<int32_t> position = Positions(rng, 9, 40);
          const OnDevice device(fused), dposition(position), dtable(table);
          CheckDone(Rope({Heads(device.view(), 0, 3), Heads(device.view(), 3, 2), dposition.view(),
                          dtable.view(), interleaved},
                         nullptr));
          REQUIRE(cpu::Rope({Heads(fused.view(), 0, 3), Heads(fused.view(), 3, 2), Column(position),
                             table.view(), interleaved})
                      .ok());
          CHECK(device.Bytes() == fused.bytes());
        }
      }
    }
  }
}

struct FusedShape {
  int64_t tokens, head_dim, gap;
  bool normed, interleaved;
  bool fp8 = false;  // the cache
};

void CheckFused(const FusedShape& s, DType dtype, std::mt19937_64& rng) {
  constexpr int64_t kBlocks = 9, kBlockSize = 16, kQ = 8, kKv = 2;
  Tensor qkv(dtype, {s.tokens, kQ + 2 * kKv, s.head_dim}, s.gap);
  Tensor q_norm(dtype, {s.head_dim}), k_norm(dtype, {s.head_dim});
  Tensor table(DType::kF32, {40, s.head_dim / 2 / 2 * 2});
  const DType cached = s.fp8 ? DType::kF8E4M3 : dtype;
  Tensor cache(cached, {kBlocks, 2, kKv, kBlockSize, s.head_dim});
  for (Tensor* t : {&qkv, &q_norm, &k_norm, &table}) t->Randomize(rng);
  if (s.head_dim % 32 == 0) {  // the whole head turns, as in most models
    table = Tensor(DType::kF32, {40, s.head_dim});
    table.Randomize(rng);
  }
  std::vector<int32_t> position = Positions(rng, s.tokens, 40);
  std::vector<int64_t> slot(static_cast<size_t>(kBlocks * kBlockSize));
  std::iota(slot.begin(), slot.end(), 0);
  std::shuffle(slot.begin(), slot.end(), rng);
  slot.resize(static_cast<size_t>(s.tokens));
  for (size_t i = 0; i < slot.size(); i += 7) slot[i] = -1;

  const OnDevice fused(qkv), parts(qkv), fused_cache(cache), part_cache(cache);
  const OnDevice dposition(position), dslot(slot), dtable(table), dq(q_norm), dk(k_norm);
  const TensorView fq = Heads(fused.view(), 0, kQ), fk = Heads(fused.view(), kQ, kKv);
  const TensorView pq = Heads(parts.view(), 0, kQ), pk = Heads(parts.view(), kQ, kKv);
  const TensorView fv = Heads(fused.view(), kQ + kKv, kKv), pv = Heads(parts.view(), kQ + kKv, kKv);
  NormRopeCacheArgs a{fq,          fk, fv, dposition.view(), dtable.view(), fused_cache.view(),
                      dslot.view()};
  if (s.normed) {
    a.q_norm = dq.view();
    a.k_norm = dk.view();
    a.weight_offset = 1.0f;
    CheckDone(RmsNorm({pq, pq, dq.view(), a.eps, 1.0f}, nullptr));
    CheckDone(RmsNorm({pk, pk, dk.view(), a.eps, 1.0f}, nullptr));
  }
  a.interleaved = s.interleaved;
  a.k_scale = s.fp8 ? 0.3f : 1.0f;
  a.v_scale = s.fp8 ? 0.07f : 1.0f;
  CheckDone(NormRopeCache(a, nullptr));
  CheckDone(Rope({pq, pk, dposition.view(), dtable.view(), s.interleaved}, nullptr));
  CheckDone(CacheWrite({pk, pv, part_cache.view(), dslot.view(), a.k_scale, a.v_scale}, nullptr));
  CHECK(fused_cache.Bytes() == part_cache.Bytes());
  Tensor got = qkv, want = qkv;
  fused.FetchTo(&got);
  parts.FetchTo(&want);
  int64_t differ = 0;
  for (int64_t n = 0; n < s.tokens; ++n) {
    for (int64_t h = 0; h < kQ + 2 * kKv; ++h) {
      if (h >= kQ && h < kQ + kKv) continue;  // what is left in k is unspecified
      for (int64_t d = 0; d < s.head_dim; ++d) differ += got.At({n, h, d}) != want.At({n, h, d});
    }
  }
  CHECK(differ == 0);
}

TEST_CASE("CUDA norm_rope_cache has the bits of its three parts" * doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(4);
  for (const int64_t head_dim : {64, 128, 256, 72, 20}) {
    for (const int64_t tokens : {1, 53}) {
      for (const bool normed : {false, true}) {
        for (const DType dtype : cpu::kFloatTypes) {
          CAPTURE(head_dim);
          CAPTURE(tokens);
          CAPTURE(normed);
          CAPTURE(static_cast<int>(dtype));
          CheckFused({tokens, head_dim, 0, normed, false}, dtype, rng);
          CheckFused({tokens, head_dim, 3, normed, false}, dtype, rng);
          CheckFused({tokens, head_dim, 8, normed, true}, dtype, rng);
          CheckFused({tokens, head_dim, 0, normed, false, true}, dtype, rng);
          CheckFused({tokens, head_dim, 3, normed, true, true}, dtype, rng);
        }
      }
    }
  }
}

TEST_CASE("CUDA row ops skip a token with a bad position or slot" * doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(5);
  for (const int64_t head_dim : {64, 20}) {
    Tensor x(DType::kBF16, {4, 3, head_dim}), table(DType::kF32, {4, head_dim});
    Tensor cache(DType::kBF16, {2, 2, 1, 16, head_dim});
    x.Randomize(rng);
    table.Randomize(rng);
    std::vector<int32_t> position = {-1, 4, INT32_MAX, INT32_MIN};
    std::vector<int64_t> slot = {32, INT64_MAX, INT64_MIN, -1};
    const OnDevice dx(x), dtable(table), dcache(cache), dposition(position), dslot(slot);
    const TensorView q = Heads(dx.view(), 0, 1), k = Heads(dx.view(), 1, 1);
    CheckDone(Rope({q, k, dposition.view(), dtable.view()}, nullptr));
    CheckDone(NormRopeCache({q, k, Heads(dx.view(), 2, 1), dposition.view(), dtable.view(),
                             dcache.view(), dslot.view()},
                            nullptr));
    CHECK(dcache.Bytes() == cache.bytes());
    CHECK(dx.Bytes() == x.bytes());
    REQUIRE(DeviceFinishes());
  }
}

}  // namespace
}  // namespace octavo::cuda

// Latent attention on CUDA beside the CPU's. Without a device every case is skipped.
#include <array>
#include <numeric>

#include "attention_problem.h"
#include "device_copy.h"
#include "octavo/cuda_layers.h"

namespace octavo::cuda {
namespace {

using cpu::Tensor;

struct Step {
  DType dtype;
  int64_t heads, rank, rope, block_size;
  std::vector<Row> rows;
  int64_t gap = 0;
};

// A step over a pool whose dead slots are NaN and whose table holds no block where no row reads.
class LatentProblem {
 public:
  LatentProblem(const Step& s, std::mt19937_64& rng)
      : step(s),
        max_blocks(MaxBlocks(s)),
        q(s.dtype, {Tokens(s) + 2, s.heads, s.rank + s.rope}, s.gap),
        out(s.dtype, {Tokens(s) + 2, s.heads, s.rank}, s.gap),
        cache(s.dtype, {max_blocks * int64_t(s.rows.size()) + 1, s.block_size, s.rank + s.rope},
              s.gap),
        table(s.rows.size() * size_t(max_blocks), 1 << 30) {
    q.Randomize(rng, 2.0);
    std::vector<int32_t> order(size_t(cache.dim(0)));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), rng);
    std::normal_distribution<double> normal;
    starts = {0};
    for (size_t r = 0; r < s.rows.size(); ++r) {
      slot.push_back(int32_t(s.rows.size() - 1 - r));
      starts.push_back(starts.back() + s.rows[r].queries);
      lengths.push_back(s.rows[r].length);
      for (int64_t t = 0; t < s.rows[r].length; ++t) {
        int32_t& block = table[size_t(slot[r] * max_blocks + t / s.block_size)];
        if (t % s.block_size == 0) {
          block = order.back();
          order.pop_back();
        }
        for (int64_t d = 0; d < s.rank + s.rope; ++d) {
          cache.Set({block, t % s.block_size, d}, normal(rng));
        }
      }
    }
  }

  LatentAttentionArgs HostArgs() {
    return {out.view(),
            q.view(),
            cache.view(),
            TensorView::Dense(table.data(), DType::kI32, {int64_t(slot.size()), max_blocks}),
            cpu::Column(slot),
            cpu::Column(starts),
            cpu::Column(lengths),
            1.0f / std::sqrt(float(step.rank + step.rope))};
  }
  void OnCuda() {
    DeviceCopy dout(out), dq(q), dcache(cache), dtable(table, int64_t(slot.size()), max_blocks);
    DeviceCopy dslot(slot), dstarts(starts), dlengths(lengths);
    LatentAttentionArgs a = HostArgs();
    a.out = dout.view();
    a.q = dq.view();
    a.cache = dcache.view();
    a.block_table = dtable.view();
    a.row_slot = dslot.view();
    a.query_start = dstarts.view();
    a.seq_len = dlengths.view();
    RequireOk(LatentAttention(a, nullptr));
    dout.Fetch();
  }

  // The relative L2 error of the worst vector; more where one is written that may not be.
  double ErrorAgainst(const LatentProblem& want) const {
    double worst = 0.0;
    for (int64_t n = 0; n < out.dim(0); ++n) {
      for (int64_t h = 0; h < step.heads; ++h) {
        double error = 0.0, norm = 1e-30;
        for (int64_t d = 0; d < step.rank; ++d) {
          const double a = out.At({n, h, d}), b = want.out.At({n, h, d});
          if (std::isnan(a) && std::isnan(b)) continue;
          if (std::isnan(a) || std::isnan(b)) return INFINITY;
          error += (a - b) * (a - b);
          norm += b * b;
        }
        worst = std::max(worst, std::sqrt(error / norm));
      }
    }
    return worst;
  }

  Step step;
  int64_t max_blocks;
  Tensor q, out, cache;
  std::vector<int32_t> table, slot, starts, lengths;

 private:
  static int64_t Tokens(const Step& s) {
    int64_t n = 0;
    for (const Row& r : s.rows) n += r.queries;
    return n;
  }
  static int64_t MaxBlocks(const Step& s) {
    int64_t most = 1;
    for (const Row& r : s.rows) {
      most = std::max(most, (r.length + s.block_size - 1) / s.block_size);
    }
    return most;
  }
};

double Tolerance(DType dtype) {
  return dtype == DType::kBF16 ? 1e-2 : dtype == DType::kF16 ? 1.5e-3 : 1e-5;
}

TEST_CASE("CUDA latent attention is the CPU's on prefill, decode and mixed rows" *
          doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(51);
  const std::vector<Row> mixed = {{3, 3}, {1, 70}, {0, 9}, {1, 1}, {1, 0}, {9, 40}, {2, 33}};
  // Rows are {queries, length}. Widths of tiles, and those that only the plain kernel takes.
  for (const Step& s :
       {Step{DType::kBF16, 16, 64, 16, 16, mixed, 8}, Step{DType::kBF16, 3, 48, 16, 8, mixed},
        Step{DType::kF16, 70, 32, 32, 16, {{2, 2}, {1, 65}, {3, 31}}},
        Step{DType::kF16, 5, 16, 0, 5, mixed}, Step{DType::kBF16, 2, 40, 24, 16, mixed},
        Step{DType::kF32, 4, 33, 7, 16, mixed, 3}}) {
    CAPTURE(s.heads);
    CAPTURE(s.rank);
    LatentProblem got(s, rng);
    LatentProblem want = got;
    got.OnCuda();
    RequireOk(cpu::LatentAttention(want.HostArgs()));
    CHECK(got.ErrorAgainst(want) <= Tolerance(s.dtype));
  }
}

TEST_CASE("CUDA latent attention takes DeepSeek's widths" * doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(52);
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    LatentProblem got({dtype, 20, 512, 64, 16, {{1, 100}, {2, 33}}}, rng);
    LatentProblem want = got;
    got.OnCuda();
    RequireOk(cpu::LatentAttention(want.HostArgs()));
    CHECK(got.ErrorAgainst(want) <= Tolerance(dtype));
  }
}

TEST_CASE("a row attends to the same bits on CUDA alone and in a batch of latents" *
          doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(53);
  LatentProblem all({DType::kBF16, 9, 32, 16, 16, {{1, 50}, {7, 7}, {1, 20}}}, rng);
  LatentProblem alone = all;
  all.OnCuda();
  alone.lengths = {0, 0, 20};  // rows of no keys write nothing
  alone.OnCuda();
  for (int64_t h = 0; h < 9; ++h) {
    for (int64_t d = 0; d < 32; ++d) {
      REQUIRE(alone.out.At({8, h, d}) == all.out.At({8, h, d}));
      REQUIRE(std::isnan(alone.out.At({0, h, d})));
    }
  }
}

TEST_CASE("CUDA latent attention follows no index out of range" * doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(54);
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    LatentProblem p({dtype, 2, 16, 16, 16, {{1, 20}, {1, 20}, {1, 20}}}, rng);
    p.slot = {-1, 3, 1};
    p.lengths[2] = INT32_MAX;
    p.OnCuda();
    p.slot[0] = INT32_MAX;
    p.starts = {0, 1, 2, INT32_MAX};
    p.OnCuda();
    p.lengths[2] = 20;
    p.starts = {-4, 1, 7, 3};
    p.OnCuda();
    p.out.Each([&](int64_t at) { REQUIRE(std::isnan(p.out.Get(at))); });
    // Blocks that do not exist count as zeros: the answer is a number.
    p.slot = {0, 1, 2};
    p.starts = {0, 1, 2, 3};
    for (size_t i = 0; i < p.table.size(); i += 2) p.table[i] = i % 4 == 0 ? -1 : INT32_MAX;
    p.OnCuda();
    CHECK_FALSE(std::isnan(p.out.At({0, 0, 0})));
  }
}

TEST_CASE("the CUDA write of latents leaves the CPU's bytes, and skips slots beyond the cache" *
          doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(55);
  for (const DType dtype : cpu::kFloatTypes) {
    for (const auto& [rank, rope, gap] :
         {std::array<int64_t, 3>{64, 16, 8}, {7, 4, 0}, {33, 0, 1}, {512, 64, 0}}) {
      Tensor latent(dtype, {9, rank}, gap), part(dtype, {9, rope}, gap);
      Tensor cache(dtype, {3, 5, rank + rope}, gap);
      latent.Randomize(rng);
      part.Randomize(rng);
      std::vector<int64_t> slot = {14, 3, -1, 0, 7, 6, -9, 9, 2};
      Tensor want = cache;
      RequireOk(
          cpu::LatentCacheWrite({latent.view(), part.view(), want.view(), cpu::Column(slot)}));
      DeviceCopy dlatent(latent), dpart(part), dcache(cache), dslot(slot);
      RequireOk(
          LatentCacheWrite({dlatent.view(), dpart.view(), dcache.view(), dslot.view()}, nullptr));
      slot.assign(9, 15);
      slot[1] = INT64_MAX;
      DeviceCopy beyond(slot);
      RequireOk(
          LatentCacheWrite({dlatent.view(), dpart.view(), dcache.view(), beyond.view()}, nullptr));
      dcache.Fetch();
      CHECK(cache.bytes() == want.bytes());
    }
  }
}

TEST_CASE("the CUDA ops of latents refuse what the CPU's refuse") {
  std::mt19937_64 rng(56);
  LatentProblem p({DType::kF32, 2, 16, 8, 4, {{1, 5}}}, rng);
  LatentAttentionArgs a = p.HostArgs();
  a.scale = INFINITY;
  CHECK(cpu::Refused(LatentAttention(a, nullptr), "latent_attention: scale is inf"));
  Tensor latent(DType::kF32, {1, 16}), part(DType::kF32, {1, 7});
  std::vector<int64_t> slot = {0};
  CHECK(cpu::Refused(
      LatentCacheWrite({latent.view(), part.view(), p.cache.view(), cpu::Column(slot)}, nullptr),
      "latent and rope have 23 entries"));
}

}  // namespace
}  // namespace octavo::cuda

// Latent attention and its cache write against a float64 reference.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "cpu/tensor.h"
#include "doctest/doctest.h"
#include "octavo/ops_latent.h"

namespace octavo::cpu {
namespace {

struct Row {
  int64_t length;
  int64_t queries;
};

// A step over a pool of NaN, whose vectors are written by the op.
struct Step {
  DType dtype;
  int64_t heads, rank, rope, block_size;
  std::vector<Row> rows;

  int64_t slots = 0, max_blocks = 1;
  std::vector<int32_t> table = {}, row_slot = {}, query_start = {0}, seq_len = {};
  std::vector<Tensor> latents = {}, ropes = {};     // per row [length, rank] and [length, rope]
  std::vector<Tensor> pool = {}, q = {}, out = {};  // one each
  TensorView cache = {};

  int64_t width() const { return rank + rope; }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(width())); }

  void Build(std::mt19937_64& rng) {
    int64_t blocks = 2;
    for (const Row& r : rows) {
      const int64_t need = (r.length + block_size - 1) / block_size;
      blocks += need;
      max_blocks = std::max(max_blocks, need + 1);
      query_start.push_back(query_start.back() + int32_t(r.queries));
      seq_len.push_back(int32_t(r.length));
    }
    slots = int64_t(rows.size()) + 2;
    // Blocks in random order; entries that no row uses are out of range on purpose.
    std::vector<int32_t> order(size_t(blocks) - 1), lines(static_cast<size_t>(slots));
    std::iota(order.begin(), order.end(), 1);
    std::iota(lines.begin(), lines.end(), 0);
    std::shuffle(order.begin(), order.end(), rng);
    std::shuffle(lines.begin(), lines.end(), rng);
    row_slot.assign(lines.begin(), lines.begin() + int64_t(rows.size()));
    table.assign(size_t(slots * max_blocks), 1 << 30);
    // [block, layer, token, entry]: layer 1 of three is the op's.
    pool.emplace_back(dtype, std::initializer_list<int64_t>{blocks, 3, block_size, width()}, 3);
    const Tensor& p = pool[0];
    cache = TensorView::Dense(p.view().ptr<char>() + p.Offset({0, 1}) * DTypeSize(dtype), dtype,
                              {blocks, block_size, width()});
    cache.stride[0] = p.view().stride[0];
    cache.stride[1] = p.view().stride[2];
    const int64_t tokens = query_start.back();
    q.emplace_back(dtype, std::initializer_list<int64_t>{tokens, heads, width()}, 8);
    out.emplace_back(dtype, std::initializer_list<int64_t>{tokens, heads, rank}, 5);
    q[0].Randomize(rng, 2.0);
    size_t next = 0;
    for (size_t r = 0; r < rows.size(); ++r) {
      for (int64_t b = 0; b * block_size < rows[r].length; ++b) {
        table[size_t(row_slot[r] * max_blocks + b)] = order[next++];
      }
      Fill(r, rng);
    }
  }

  int64_t SlotOf(size_t r, int64_t position) const {
    const int64_t block = table[size_t(row_slot[r] * max_blocks + position / block_size)];
    return block * block_size + position % block_size;
  }

  void Fill(size_t r, std::mt19937_64& rng) {
    const int64_t n = rows[r].length;
    latents.emplace_back(dtype, std::initializer_list<int64_t>{n, rank}, 1);
    ropes.emplace_back(dtype, std::initializer_list<int64_t>{n, rope}, 2);
    latents[r].Randomize(rng);
    ropes[r].Randomize(rng);
    std::vector<int64_t> slot(static_cast<size_t>(n));
    for (int64_t p = 0; p < n; ++p) slot[size_t(p)] = SlotOf(r, p);
    REQUIRE(LatentCacheWrite({latents[r].view(), ropes[r].view(), cache, Column(slot)}).ok());
  }

  LatentAttentionArgs Args() {
    LatentAttentionArgs a;
    a.out = out[0].view();
    a.q = q[0].view();
    a.cache = cache;
    a.block_table = TensorView::Dense(table.data(), DType::kI32, {slots, max_blocks});
    a.row_slot = Column(row_slot);
    a.query_start = Column(query_start);
    a.seq_len = Column(seq_len);
    a.scale = scale();
    return a;
  }

  double KeyAt(size_t r, int64_t p, int64_t d) const {
    return d < rank ? latents[r].At({p, d}) : ropes[r].At({p, d - rank});
  }

  std::vector<double> Expected(size_t r, int64_t i, int64_t h) const {
    const int64_t position = rows[r].length - rows[r].queries + i;
    std::vector<double> scores;
    for (int64_t p = 0; p <= position; ++p) {
      double s = 0.0;
      for (int64_t d = 0; d < width(); ++d) {
        s += q[0].At({query_start[r] + i, h, d}) * KeyAt(r, p, d);
      }
      scores.push_back(s * double(scale()));
    }
    const double top = *std::max_element(scores.begin(), scores.end());
    double sum = 0.0;
    std::vector<double> result(static_cast<size_t>(rank), 0.0);
    for (int64_t p = 0; p <= position; ++p) {
      const double w = std::exp(scores[size_t(p)] - top);
      sum += w;
      for (int64_t d = 0; d < rank; ++d) result[size_t(d)] += w * latents[r].At({p, d});
    }
    for (double& x : result) x /= sum;
    return result;
  }

  // Checks every row, or a sample of the queries of long ones; and that nothing else was written.
  void Check(std::mt19937_64& rng) {
    for (size_t r = 0; r < rows.size(); ++r) {
      for (int64_t i = 0; i < rows[r].queries; ++i) {
        if (rows[r].queries > 6 && i > 1 && i < rows[r].queries - 1 && rng() % 16 != 0) continue;
        for (int64_t h = 0; h < heads; ++h) {
          const std::vector<double> want = Expected(r, i, h);
          for (int64_t d = 0; d < rank; ++d) {
            CAPTURE(r);
            CAPTURE(i);
            REQUIRE(Close(dtype, out[0].At({query_start[r] + i, h, d}), want[size_t(d)]));
          }
        }
      }
    }
  }
};

template <typename T>
T Pick(std::mt19937_64& rng, std::initializer_list<T> from) {
  return from.begin()[rng() % from.size()];
}

Step RandomStep(std::mt19937_64& rng) {
  Step s;
  s.dtype = Pick(rng, {DType::kF32, DType::kBF16, DType::kF16});
  s.heads = Pick<int64_t>(rng, {1, 2, 3, 5, 8, 9, 16, 70});
  s.rank = Pick<int64_t>(rng, {1, 7, 16, 32, 40, 64, 96, 130});
  s.rope = Pick<int64_t>(rng, {0, 1, 4, 16, 24, 32});
  s.block_size = Pick<int64_t>(rng, {1, 5, 8, 16, 32});
  const int64_t b = s.block_size;
  for (uint64_t r = rng() % 4 + 1; r > 0; --r) {
    const int64_t length = Pick<int64_t>(rng, {0, 1, b - 1, b, b + 1, 2 * b, 63, 64, 65, 130});
    const int64_t queries = Pick<int64_t>(rng, {0, 1, 1, 1, 2, 9, length / 2, length});
    s.rows.push_back({length, std::min(length, queries)});
  }
  return s;
}

Step Small(std::mt19937_64& rng) {
  Step s{DType::kF32, 3, 16, 8, 4, {{10, 2}, {4, 1}}};
  s.Build(rng);
  return s;
}

TEST_CASE("latent attention equals float64 on random steps of prefill, decode and mixed rows") {
  for (uint64_t seed = 0; seed < 80; ++seed) {
    CAPTURE(seed);
    std::mt19937_64 rng(seed);
    Step s = RandomStep(rng);
    CAPTURE(s.heads);
    CAPTURE(s.rank);
    CAPTURE(s.rope);
    s.Build(rng);
    REQUIRE(LatentAttention(s.Args()).ok());
    s.Check(rng);
  }
}

TEST_CASE(
    "every instruction set attends over latents of DeepSeek's width, keys in several splits") {
  ForEachIsa([] {
    for (const DType dtype : kFloatTypes) {
      std::mt19937_64 rng(5);
      Step s{dtype, 20, 512, 64, 16, {{700, 1}, {70, 5}, {3, 3}}};
      s.Build(rng);
      REQUIRE(LatentAttention(s.Args()).ok());
      for (int64_t h : {0, 7, 19}) {
        const std::vector<double> want = s.Expected(0, 0, h);
        for (int64_t d = 0; d < 512; ++d) {
          REQUIRE(Close(dtype, s.out[0].At({0, h, d}), want[size_t(d)]));
        }
      }
    }
  });
}

TEST_CASE("a row attends to the same bits alone and in a batch of latents") {
  std::mt19937_64 rng(11);
  Step s{DType::kF32, 16, 48, 16, 16, {{1500, 1}, {90, 40}, {600, 2}}};
  s.Build(rng);
  REQUIRE(LatentAttention(s.Args()).ok());
  const Tensor together = s.out[0];
  for (size_t r = 0; r < s.rows.size(); ++r) {
    LatentAttentionArgs a = s.Args();
    const int64_t first = s.query_start[r];
    std::vector<int32_t> start = {0, int32_t(s.rows[r].queries)};
    for (TensorView* v : {&a.q, &a.out}) {
      v->data = v->ptr<float>() + first * v->stride[0];
      v->shape[0] = s.rows[r].queries;
    }
    a.row_slot = TensorView::Dense(&s.row_slot[r], DType::kI32, {1});
    a.seq_len = TensorView::Dense(&s.seq_len[r], DType::kI32, {1});
    a.query_start = Column(start);
    REQUIRE(LatentAttention(a).ok());
  }
  CHECK(s.out[0].bytes() == together.bytes());
}

TEST_CASE("a negative slot is skipped, and what does not fit the cache is refused by name") {
  std::mt19937_64 rng(3);
  Step s = Small(rng);
  Tensor latent(DType::kF32, {2, 16}), rope(DType::kF32, {2, 8}), narrow(DType::kF32, {2, 7});
  latent.Randomize(rng);
  rope.Randomize(rng);
  const std::vector<unsigned char> before = s.pool[0].bytes();
  std::vector<int64_t> slot = {-1, s.cache.shape[0] * 4};
  const auto write = [&](const Tensor& part) {
    return LatentCacheWrite({latent.view(), part.view(), s.cache, Column(slot)});
  };
  CHECK(Refused(write(rope), "latent_cache_write: slot[1] is " + std::to_string(slot[1])));
  slot[1] = -1;
  CHECK(write(rope).ok());
  CHECK(Refused(write(narrow), "latent and rope have 23 entries, need the cache's 24"));
  CHECK(s.pool[0].bytes() == before);
}

TEST_CASE(
    "wrong shapes and indices of latent attention are refused by name, and nothing is written") {
  std::mt19937_64 rng(4);
  Step s = Small(rng);
  const std::vector<unsigned char> before = s.out[0].bytes();
  LatentAttentionArgs a = s.Args();
  a.q.shape[2] = 23;
  CHECK(Refused(LatentAttention(a), "q has 3 heads of 23, need one or more of the cache's 24"));
  a = s.Args();
  a.out.shape[2] = 25;
  CHECK(Refused(LatentAttention(a), "a vector has 24 entries, 25 of them latent"));
  a = s.Args();
  a.scale = INFINITY;
  CHECK(Refused(LatentAttention(a), "scale is inf"));
  a = s.Args();
  a.cache.dtype = DType::kBF16;
  CHECK(Refused(LatentAttention(a), "latent_attention: cache"));
  s.seq_len[0] = 1;
  CHECK(Refused(LatentAttention(s.Args()), "latent_attention: seq_len[0] is 1"));
  s.seq_len[0] = 10;
  s.table[size_t(s.row_slot[0] * s.max_blocks + 1)] = -1;
  CHECK(Refused(LatentAttention(s.Args()), "latent_attention: block_table["));
  CHECK(s.out[0].bytes() == before);

  a = s.Args();
  a.seq_len.data = a.out.data;
  CHECK(Refused(LatentAttention(a), "shares memory with an input"));
  std::vector<int64_t> slot(1, 0);
  LatentCacheWriteArgs w{s.latents[0].view(), s.ropes[0].view(), s.cache, Column(slot)};
  w.latent.shape[0] = w.rope.shape[0] = 1;
  CHECK(LatentCacheWrite(w).ok());
  w.slot.data = w.cache.data;
  CHECK(Refused(LatentCacheWrite(w), "shares memory with an input"));
  w.slot = Column(slot);
  w.rope.data = w.cache.data;
  CHECK(Refused(LatentCacheWrite(w), "shares memory with an input"));
}

}  // namespace
}  // namespace octavo::cpu

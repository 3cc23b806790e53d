// Paged attention, the cache write and the slot mapping against a float64 reference.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "cpu/tensor.h"
#include "doctest/doctest.h"

namespace octavo::cpu {
namespace {

struct Row {
  int64_t length;
  int64_t queries;
};

// A step: a pool of NaN, rows' keys and values written through slot_mapping and cache_write,
// queries.
struct Step {
  DType dtype;
  int64_t kv_heads, group, dim, block_size;
  std::vector<Row> rows;
  int64_t window = 0;
  bool chunked = false;
  float soft_cap = 0.0f;
  bool sinks = false;
  bool fp8 = false;  // the cache
  float k_scale = 1.0f, v_scale = 1.0f;

  int64_t slots = 0, max_blocks = 0;
  std::vector<int32_t> table = {}, row_slot = {}, query_start = {}, seq_len = {};
  std::vector<float> sink = {};
  std::vector<Tensor> keys = {}, values = {};       // per row [length, kv_heads, dim]
  std::vector<Tensor> pool = {}, q = {}, out = {};  // one each
  TensorView cache = {};

  int64_t heads() const { return kv_heads * group; }
  DType cache_dtype() const { return fp8 ? DType::kF8E4M3 : dtype; }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(dim)); }

  void Build(std::mt19937_64& rng) {
    int64_t blocks = 2;
    query_start = {0};
    for (const Row& r : rows) {
      const int64_t need = (r.length + block_size - 1) / block_size;
      blocks += need;
      max_blocks = std::max(max_blocks, need);
      query_start.push_back(query_start.back() + int32_t(r.queries));
      seq_len.push_back(int32_t(r.length));
    }
    max_blocks += 1;
    slots = int64_t(rows.size()) + 2;
    // Blocks in random order; entries that no row uses are out of range on purpose.
    std::vector<int32_t> order(size_t(blocks) - 1);
    std::iota(order.begin(), order.end(), 1);
    std::shuffle(order.begin(), order.end(), rng);
    std::vector<int32_t> lines(static_cast<size_t>(slots));
    std::iota(lines.begin(), lines.end(), 0);
    std::shuffle(lines.begin(), lines.end(), rng);
    row_slot.assign(lines.begin(), lines.begin() + int64_t(rows.size()));
    table.assign(size_t(slots * max_blocks), 1 << 30);
    pool.emplace_back(cache_dtype(),
                      std::initializer_list<int64_t>{blocks, 3, 2 * kv_heads, block_size, dim}, 3);
    const Tensor& p = pool[0];  // [block, layer, K/V and head, token, dim]: layer 1 is the op's
    cache = TensorView::Dense(nullptr, cache_dtype(), {blocks, 2, kv_heads, block_size, dim});
    cache.data = p.view().ptr<char>() + p.Offset({0, 1}) * DTypeSize(cache_dtype());
    const int64_t head = p.view().stride[2];
    const int64_t strides[] = {p.view().stride[0], head * kv_heads, head, p.view().stride[3], 1};
    std::copy(strides, strides + 5, cache.stride);
    const int64_t tokens = query_start.back();
    q.emplace_back(dtype, std::initializer_list<int64_t>{tokens, heads(), dim}, 8);
    out.emplace_back(dtype, std::initializer_list<int64_t>{tokens, heads(), dim}, 4);
    q[0].Randomize(rng, 2.0);
    std::normal_distribution<float> normal;
    for (int64_t h = 0; h < heads(); ++h) sink.push_back(normal(rng));
    size_t next = 0;
    for (size_t r = 0; r < rows.size(); ++r) {
      for (int64_t b = 0; b * block_size < rows[r].length; ++b) {
        table[size_t(row_slot[r] * max_blocks + b)] = order[next++];
      }
      Fill(r, rng);
    }
  }

  TensorView TableView() {
    return TensorView::Dense(table.data(), DType::kI32, {slots, max_blocks});
  }

  // Writes the row's keys and values, as a prefill of all its tokens would.
  void Fill(size_t r, std::mt19937_64& rng) {
    const int64_t n = rows[r].length;
    keys.emplace_back(dtype, std::initializer_list<int64_t>{n, kv_heads, dim}, 1);
    values.emplace_back(dtype, std::initializer_list<int64_t>{n, kv_heads, dim}, 2);
    keys[r].Randomize(rng);
    values[r].Randomize(rng);
    std::vector<int32_t> position(static_cast<size_t>(n)), start = {0, int32_t(n)},
                                                           line = {row_slot[r]};
    std::vector<int64_t> slot(static_cast<size_t>(n), -7);
    std::iota(position.begin(), position.end(), 0);
    REQUIRE(SlotMapping({Column(slot), Column(position), Column(start), Column(line), TableView(),
                         block_size})
                .ok());
    REQUIRE(
        CacheWrite({keys[r].view(), values[r].view(), cache, Column(slot), k_scale, v_scale}).ok());
    if (!fp8) return;
    keys[r] = Kept(keys[r], k_scale);
    values[r] = Kept(values[r], v_scale);
  }

  // What a cache in fp8 keeps of a row.
  Tensor Kept(const Tensor& x, float by) const {
    Tensor kept(DType::kF32, {x.dim(0), kv_heads, dim});
    for (int64_t t = 0; t < x.dim(0); ++t) {
      for (int64_t h = 0; h < kv_heads; ++h) {
        for (int64_t d = 0; d < dim; ++d) {
          const float quotient = static_cast<float>(x.At({t, h, d})) / by;
          kept.Set({t, h, d}, FromE4m3(ToE4m3(double(quotient))) * double(by));
        }
      }
    }
    return kept;
  }

  PagedAttentionArgs Args() {
    PagedAttentionArgs a;
    a.out = out[0].view();
    a.q = q[0].view();
    a.cache = cache;
    a.block_table = TableView();
    a.row_slot = Column(row_slot);
    a.query_start = Column(query_start);
    a.seq_len = Column(seq_len);
    a.scale = scale();
    a.window = window;
    a.chunked = chunked;
    a.soft_cap = soft_cap;
    if (sinks) a.sinks = Column(sink);
    a.k_scale = k_scale;
    a.v_scale = v_scale;
    return a;
  }

  // The float64 output of query i of row r for head h.
  std::vector<double> Expected(size_t r, int64_t i, int64_t h) const {
    const int64_t position = rows[r].length - rows[r].queries + i;
    const int64_t slides = window > 0 ? std::max<int64_t>(0, position - window + 1) : 0;
    const int64_t first = chunked ? position / window * window : slides;
    double top = sinks ? double(sink[size_t(h)]) : -INFINITY;
    std::vector<double> scores;
    for (int64_t p = first; p <= position; ++p) {
      double s = 0.0;
      for (int64_t d = 0; d < dim; ++d) {
        s += q[0].At({query_start[r] + i, h, d}) * keys[r].At({p, h / group, d});
      }
      s *= double(scale());
      if (soft_cap > 0) s = double(soft_cap) * std::tanh(s / double(soft_cap));
      scores.push_back(s);
      top = std::max(top, s);
    }
    double sum = sinks ? std::exp(double(sink[size_t(h)]) - top) : 0.0;
    std::vector<double> result(static_cast<size_t>(dim), 0.0);
    for (int64_t p = first; p <= position; ++p) {
      const double w = std::exp(scores[size_t(p - first)] - top);
      sum += w;
      for (int64_t d = 0; d < dim; ++d) result[size_t(d)] += w * values[r].At({p, h / group, d});
    }
    for (double& x : result) x /= sum;
    return result;
  }

  // Checks every row, or a sample of the queries of long ones.
  void Check(std::mt19937_64& rng) {
    for (size_t r = 0; r < rows.size(); ++r) {
      for (int64_t i = 0; i < rows[r].queries; ++i) {
        if (rows[r].queries > 6 && i > 1 && i < rows[r].queries - 1 && rng() % 16 != 0) continue;
        for (int64_t h = 0; h < heads(); ++h) {
          const std::vector<double> want = Expected(r, i, h);
          for (int64_t d = 0; d < dim; ++d) {
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
  s.kv_heads = Pick<int64_t>(rng, {1, 2, 3});
  s.group = Pick<int64_t>(rng, {1, 2, 3, 4, 5, 6, 7, 8, 12});
  s.dim = Pick<int64_t>(rng, {8, 32, 40, 64, 72, 80, 96, 104, 112, 128, 256});
  s.block_size = Pick<int64_t>(rng, {1, 5, 8, 16, 32});
  s.window = Pick<int64_t>(rng, {0, 0, 0, 1, 5, 64, 100});
  s.chunked = s.window > 0 && Pick<int64_t>(rng, {0, 1}) == 1;
  s.soft_cap = Pick(rng, {0.0f, 0.0f, 3.0f, 50.0f});
  s.sinks = rng() % 4 == 0;
  const int64_t b = s.block_size;
  for (uint64_t r = rng() % 5 + 1; r > 0; --r) {
    const int64_t length =
        Pick<int64_t>(rng, {0, 1, b - 1, b, b + 1, 2 * b, 17, 63, 64, 65, 130, 300});
    const int64_t queries = Pick<int64_t>(rng, {0, 1, 1, 1, 2, 9, length / 2, length});
    s.rows.push_back({length, std::min(length, queries)});
  }
  return s;
}

TEST_CASE("attention equals float64 on random steps of prefill, decode and mixed rows") {
  for (uint64_t seed = 0; seed < 120; ++seed) {
    CAPTURE(seed);
    std::mt19937_64 rng(seed);
    Step s = RandomStep(rng);
    CAPTURE(s.dim);
    CAPTURE(s.group);
    CAPTURE(s.window);
    s.Build(rng);
    ForEachIsa([&] {
      REQUIRE(PagedAttention(s.Args()).ok());
      s.Check(rng);
    });
  }
}

TEST_CASE("attention over a cache in fp8 equals float64 over what it keeps") {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    std::mt19937_64 rng(seed);
    Step s = RandomStep(rng);
    CAPTURE(s.dim);
    CAPTURE(s.group);
    s.fp8 = true;
    s.k_scale = Pick(rng, {1.0f, 0.013f, 0.3f, 2.7f});
    s.v_scale = Pick(rng, {1.0f, 0.05f, 0.4f});
    s.Build(rng);
    ForEachIsa([&] {
      REQUIRE(PagedAttention(s.Args()).ok());
      s.Check(rng);
    });
  }
}

TEST_CASE("a long row is cut over its keys and merged exactly") {
  for (const int64_t window : {0, 700}) {
    std::mt19937_64 rng(7);
    Step s{.dtype = DType::kF32,
           .kv_heads = 2,
           .group = 4,
           .dim = 64,
           .block_size = 16,
           .rows = {{2500, 1}, {1023, 3}, {512, 1}},
           .window = window,
           .soft_cap = 0.0f,
           .sinks = true};
    s.Build(rng);
    for (const int threads : {1, 2, 3}) {
      SetNumThreads(threads);
      REQUIRE(PagedAttention(s.Args()).ok());
      s.Check(rng);
    }
    SetNumThreads(0);
  }
}

TEST_CASE("a row's output is the same bits alone, in a batch, and for any number of threads") {
  std::mt19937_64 rng(8);
  Step s{.dtype = DType::kF32,
         .kv_heads = 2,
         .group = 2,
         .dim = 64,
         .block_size = 16,
         .rows = {{1800, 1}, {700, 200}, {90, 1}, {1, 1}, {600, 7}, {300, 300}}};
  s.Build(rng);
  SetNumThreads(1);
  REQUIRE(PagedAttention(s.Args()).ok());
  const std::vector<unsigned char> whole = s.out[0].bytes();
  for (const int threads : {2, 4}) {
    SetNumThreads(threads);
    REQUIRE(PagedAttention(s.Args()).ok());
    CHECK(s.out[0].bytes() == whole);
    for (size_t r = 0; r < s.rows.size(); ++r) {
      PagedAttentionArgs one = s.Args();
      std::vector<int32_t> start = {0, int32_t(s.rows[r].queries)};
      for (TensorView* v : {&one.q, &one.out}) {
        v->data = v->ptr<float>() + s.query_start[r] * v->stride[0];
        v->shape[0] = s.rows[r].queries;
      }
      one.query_start = Column(start);
      one.row_slot.data = s.row_slot.data() + r;
      one.row_slot.shape[0] = 1;
      one.seq_len.data = s.seq_len.data() + r;
      one.seq_len.shape[0] = 1;
      REQUIRE(PagedAttention(one).ok());
      CHECK(s.out[0].bytes() == whole);
    }
  }
  SetNumThreads(0);
}

// The bytes of out where row r computes the queries [begin, end) of its prompt alone, in one chunk.
// REQUIRES: the step has all of the row's tokens as queries.
void RunChunk(Step& s, size_t r, int64_t begin, int64_t end, bool invariant) {
  PagedAttentionArgs one = s.Args();
  one.invariant = invariant;
  std::vector<int32_t> start = {0, int32_t(end - begin)}, length = {int32_t(end)};
  for (TensorView* v : {&one.q, &one.out}) {
    v->data = v->ptr<char>() + (s.query_start[r] + begin) * v->stride[0] * DTypeSize(s.dtype);
    v->shape[0] = end - begin;
  }
  one.query_start = Column(start);
  one.row_slot.data = s.row_slot.data() + r;
  one.row_slot.shape[0] = 1;
  one.seq_len = Column(length);
  REQUIRE(PagedAttention(one).ok());
}

// Whether any byte of out changes as the rows' prompts come in chunks of random lengths instead of
// whole and together, for several numbers of threads.
bool ChunksMatter(Step& s, std::mt19937_64& rng, bool invariant) {
  PagedAttentionArgs all = s.Args();
  all.invariant = invariant;
  SetNumThreads(1);
  REQUIRE(PagedAttention(all).ok());
  const std::vector<unsigned char> whole = s.out[0].bytes();
  bool differs = false;
  for (const int threads : {1, 3}) {
    SetNumThreads(threads);
    REQUIRE(PagedAttention(all).ok());
    differs = differs || s.out[0].bytes() != whole;
    for (size_t r = 0; r < s.rows.size(); ++r) {
      for (int64_t begin = 0; begin < s.rows[r].length;) {
        const int64_t most = Pick<int64_t>(rng, {1, 1, 2, 5, 17, 40, 300});
        const int64_t end = std::min(s.rows[r].length, begin + most);
        RunChunk(s, r, begin, end, invariant);
        begin = end;
      }
    }
    differs = differs || s.out[0].bytes() != whole;
  }
  SetNumThreads(0);
  return differs;
}

TEST_CASE("an invariant query has the same bits in any chunk, row, batch and number of threads") {
  int without = 0;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    CAPTURE(seed);
    std::mt19937_64 rng(seed);
    Step s = RandomStep(rng);
    for (Row& r : s.rows) r.queries = r.length;
    s.Build(rng);
    ForEachIsa([&] {
      CHECK(!ChunksMatter(s, rng, /*invariant=*/true));
      s.Check(rng);
    });
    without += ChunksMatter(s, rng, /*invariant=*/false) ? 1 : 0;
  }
  CHECK(without > 10);
}

TEST_CASE("an invariant query has the same bits where its row is cut over its keys") {
  for (const int64_t window : {0, 2500}) {
    CAPTURE(window);
    std::mt19937_64 rng(21);
    Step s{.dtype = DType::kBF16,
           .kv_heads = 2,
           .group = 1,
           .dim = 32,
           .block_size = 16,
           .rows = {{4600, 4600}, {70, 70}},
           .window = window,
           .soft_cap = 0.0f,
           .sinks = true};
    s.Build(rng);
    PagedAttentionArgs all = s.Args();
    all.invariant = true;
    REQUIRE(PagedAttention(all).ok());
    s.Check(rng);
    const std::vector<unsigned char> whole = s.out[0].bytes();
    for (const int threads : {1, 8}) {
      SetNumThreads(threads);
      for (const int64_t end : {2047, 2048, 2049, 4096, 4097, 4600}) {
        RunChunk(s, 0, end - 1, end, true);  // decode: splits are tasks of their own
        RunChunk(s, 0, end - 31, end, true);
        RunChunk(s, 0, end - 200, end, true);  // several tiles
        CHECK(s.out[0].bytes() == whole);
      }
    }
    SetNumThreads(0);
  }
}

TEST_CASE("rows without keys and tokens of no row stay unwritten") {
  std::mt19937_64 rng(9);
  Step s{.dtype = DType::kF32,
         .kv_heads = 1,
         .group = 1,
         .dim = 32,
         .block_size = 16,
         .rows = {{5, 1}, {4, 2}}};
  s.Build(rng);
  s.seq_len[1] = 0;
  REQUIRE(PagedAttention(s.Args()).ok());
  CHECK(!std::isnan(s.out[0].At({0, 0, 0})));
  CHECK(std::isnan(s.out[0].At({1, 0, 0})));
  CHECK(std::isnan(s.out[0].At({2, 0, 31})));
}

TEST_CASE("blocks before every window are neither read nor checked") {
  std::mt19937_64 rng(10);
  Step s{.dtype = DType::kF32,
         .kv_heads = 1,
         .group = 2,
         .dim = 32,
         .block_size = 16,
         .rows = {{100, 2}},
         .window = 20};
  s.Build(rng);
  // The first query stands at 98 and sees 79..98: blocks 0 to 3 (keys 0..63) may be gone.
  for (int b = 0; b < 4; ++b) s.table[size_t(s.row_slot[0] * s.max_blocks + b)] = -1;
  REQUIRE(PagedAttention(s.Args()).ok());
  s.Check(rng);
  s.table[size_t(s.row_slot[0] * s.max_blocks + 4)] = -1;
  CHECK(Refused(PagedAttention(s.Args()), "block_table"));
}

TEST_CASE("attention refuses bad indices before it touches memory") {
  std::mt19937_64 rng(11);
  Step s{.dtype = DType::kF32,
         .kv_heads = 1,
         .group = 1,
         .dim = 32,
         .block_size = 16,
         .rows = {{40, 2}, {10, 1}}};
  s.Build(rng);
  const auto refused = [&](const char* part) {
    CHECK(Refused(PagedAttention(s.Args()), part));
    CHECK(std::isnan(s.out[0].At({0, 0, 0})));
  };
  const auto with = [&](int32_t& field, int32_t value, const char* part) {
    const int32_t before = field;
    field = value;
    refused(part);
    field = before;
  };
  with(s.table[size_t(s.row_slot[1] * s.max_blocks)], int32_t(s.cache.shape[0]), "block_table");
  with(s.table[size_t(s.row_slot[0] * s.max_blocks + 2)], -1, "block_table");
  with(s.row_slot[1], int32_t(s.slots), "row_slot[1]");
  with(s.row_slot[0], -1, "row_slot[0]");
  with(s.seq_len[0], 1 << 20, "seq_len[0]");
  with(s.seq_len[0], -3, "seq_len[0]");
  with(s.seq_len[0], 1, "seq_len[0] is 1, need at least the row's 2 queries");
  with(s.query_start[0], 1, "query_start");
  with(s.query_start[1], 9, "query_start");
  with(s.query_start[2], 4, "query_start");
  PagedAttentionArgs a = s.Args();
  a.q.shape[2] = a.out.shape[2] = a.cache.shape[4] = 20;
  CHECK(Refused(PagedAttention(a), "head dim is 20"));
  a = s.Args();
  a.chunked = true;
  CHECK(Refused(PagedAttention(a), "chunked"));
  a.chunked = false;
  a.window = -1;
  CHECK(Refused(PagedAttention(a), "window"));
  a = s.Args();
  a.scale = INFINITY;
  CHECK(Refused(PagedAttention(a), "scale"));
}

TEST_CASE("cache_write skips negative slots, fills the named ones and refuses others") {
  std::mt19937_64 rng(12);
  for (const DType dtype : kFloatTypes) {
    Tensor k(dtype, {3, 2, 24}, 1), v(dtype, {3, 2, 24}), cache(dtype, {4, 2, 2, 8, 24});
    k.Randomize(rng);
    v.Randomize(rng);
    std::vector<int64_t> slot = {31, -1, 8};
    REQUIRE(CacheWrite({k.view(), v.view(), cache.view(), Column(slot)}).ok());
    int64_t written = 0;
    cache.Each([&](int64_t offset) { written += std::isnan(cache.Get(offset)) ? 0 : 1; });
    CHECK(written == 2 * 2 * 2 * 24);
    for (int64_t h = 0; h < 2; ++h) {
      for (int64_t d = 0; d < 24; ++d) {
        REQUIRE(cache.At({3, 0, h, 7, d}) == k.At({0, h, d}));
        REQUIRE(cache.At({3, 1, h, 7, d}) == v.At({0, h, d}));
        REQUIRE(cache.At({1, 1, h, 0, d}) == v.At({2, h, d}));
      }
    }
    slot[1] = 32;
    CHECK(Refused(CacheWrite({k.view(), v.view(), cache.view(), Column(slot)}), "slot[1] is 32"));
    Tensor other(dtype, {4, 2, 3, 8, 24});
    CHECK(Refused(CacheWrite({k.view(), v.view(), other.view(), Column(slot)}), "2 heads"));
    TensorView inside = v.view();
    inside.data = cache.view().data;
    slot[1] = -1;
    CHECK(Refused(CacheWrite({k.view(), inside, cache.view(), Column(slot)}), "shares memory"));
  }
}

TEST_CASE("slot_mapping follows the block table and gives padding no slot") {
  std::vector<int32_t> table = {0, 0, 0, 7, 3, 9}, line = {1}, start = {0, 3},
                       position = {0, 5, 11, 2};
  std::vector<int64_t> slot(4, 99);
  const TensorView table_view = TensorView::Dense(table.data(), DType::kI32, {2, 3});
  const auto run = [&] {
    return SlotMapping(
        {Column(slot), Column(position), Column(start), Column(line), table_view, 4});
  };
  REQUIRE(run().ok());
  CHECK(slot == std::vector<int64_t>{28, 13, 39, -1});
  position[2] = 12;
  CHECK(Refused(run(), "position[2] is 12"));
  position[2] = -1;
  CHECK(Refused(run(), "position[2]"));
  position[2] = 11;
  table[5] = -2;
  CHECK(Refused(run(), "block_table"));
  line[0] = 2;
  CHECK(Refused(run(), "row_slot[0]"));
}

}  // namespace
}  // namespace octavo::cpu

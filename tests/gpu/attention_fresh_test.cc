// norm_rope_attention on CUDA: the bits of norm_rope_cache and paged_attention one after another,
// in one kernel where that is to be.
#include "attention_problem.h"
#include "backend.h"

namespace octavo::cuda {
namespace {

using cpu::Tensor;

// A problem whose newest tokens are not in the cache yet.
struct FreshProblem {
  Problem attention;
  bool normed = true;
  bool interleaved = false;
  int64_t rotary = 0;  // dims that turn; 0: all
  bool planned = true;
  bool ready = false;       // the plan, to the attention
  bool one_kernel = false;  // that the shape fits, where a multiprocessor holds two CTAs
};

constexpr int64_t kPositions = 50;

// Where the newest tokens of a row go, by the table; -1 for tokens of no row and of rows that do
// nothing. What was there is NaN.
std::vector<int64_t> TakeSlots(Instance* instance) {
  const Problem& p = instance->problem;
  std::vector<int64_t> slots(static_cast<size_t>(p.tokens()), -1);
  for (size_t r = 0; r < p.rows.size(); ++r) {
    const Row& row = p.rows[r];
    if (row.length == 0) continue;
    const int32_t* line = instance->table.data() + instance->row_slot[r] * instance->max_blocks;
    for (int32_t i = 0; i < row.queries; ++i) {
      const int64_t at = row.length - row.queries + i, block = line[at / p.block_size];
      const int64_t place = at % p.block_size;
      slots[static_cast<size_t>(instance->query_start[r] + i)] = block * p.block_size + place;
      for (int64_t kv = 0; kv < 2; ++kv) {
        for (int64_t h = 0; h < p.kv_heads; ++h) {
          for (int64_t d = 0; d < p.head_dim; ++d) {
            instance->cache.Set({block, kv, h, place, d}, cpu::kNan);
          }
        }
      }
    }
  }
  return slots;
}

TensorView HeadsOf(const TensorView& qkv, int64_t first, int64_t count) {
  TensorView v = qkv;
  v.data = v.ptr<char>() + first * v.stride[1] * DTypeSize(v.dtype);
  v.shape[1] = count;
  return v;
}

// A problem with all that norm_rope_attention takes.
class Fresh {
 public:
  explicit Fresh(const FreshProblem& p)
      : problem_(p),
        instance_(p.attention),
        slots_(TakeSlots(&instance_)),
        raw_(p.attention.dtype, {Tokens(), Heads(), Dim()}),
        qkv_(p.attention.dtype, {Tokens(), Heads(), Dim()}, p.attention.gap),
        norms_(p.attention.dtype, {2, Dim()}),
        table_(DType::kF32, {kPositions, p.rotary == 0 ? Dim() : p.rotary}) {
    std::mt19937_64 rng(p.attention.seed + 9);
    for (Tensor* t : {&raw_, &norms_, &table_}) t->Randomize(rng);
    for (int64_t t = 0; t < Tokens(); ++t) {
      // One token in nine has no angles.
      position_.push_back(static_cast<int32_t>(rng() % (kPositions + kPositions / 8)));
    }
  }

  void Check() {
    const Result result = Run(/*fused=*/true), parts = Run(/*fused=*/false);
    CHECK(result.out == parts.out);
    CHECK(result.cache == parts.cache);
    // The one kernel leaves q as it was, the other two turn it in place.
    CHECK((result.qkv == parts.front) == InOneKernel());
  }

  // Whether the cache stays as it is when the only token has this slot.
  bool StoresNothing(int64_t slot) {
    slots_ = {slot};
    const std::vector<unsigned char> cache = Run(/*fused=*/true).cache;
    return std::equal(cache.begin(), cache.end(), instance_.cache.bytes().begin());
  }

 private:
  struct Result {
    std::vector<unsigned char> out, cache, qkv, front;
  };

  int64_t Tokens() const { return problem_.attention.tokens(); }
  int64_t Dim() const { return problem_.attention.head_dim; }
  int64_t Heads() const { return problem_.attention.kv_heads * (problem_.attention.group + 2); }

  bool InOneKernel() const {
    AttentionCall call;
    REQUIRE(ResolveCall(instance_.DeviceArgs(), problem_.attention.options, {}, &call).ok());
    return problem_.one_kernel && (call.choice.pair || Dim() == 256);
  }

  NormRopeAttentionArgs Args(const TensorView& qkv, const TensorView& out, const TensorView& cache,
                             const OnDevice& norms) {
    const Problem& p = problem_.attention;
    const int64_t q_heads = p.kv_heads * p.group;
    NormRopeAttentionArgs a;
    a.attention = instance_.DeviceArgs();
    a.attention.q = HeadsOf(qkv, 0, q_heads);
    a.attention.out = out;
    a.attention.cache = cache;
    a.k = HeadsOf(qkv, q_heads, p.kv_heads);
    a.v = HeadsOf(qkv, q_heads + p.kv_heads, p.kv_heads);
    a.weight_offset = p.seed % 2 == 0 ? 0.0f : 1.0f;
    a.interleaved = problem_.interleaved;
    if (problem_.normed) {
      a.q_norm = norms.view();
      a.q_norm->rank = 1;
      a.q_norm->shape[0] = Dim();
      a.q_norm->stride[0] = 1;
      a.k_norm = a.q_norm;
      a.k_norm->data = norms.view().ptr<char>() + Dim() * DTypeSize(p.dtype);
    }
    return a;
  }

  // A kernel writes q, k and v, and the op follows it.
  Result Run(bool fused) {
    Tensor out(problem_.attention.dtype,
               {Tokens(), problem_.attention.kv_heads * problem_.attention.group, Dim()}, 0);
    Tensor ones(problem_.attention.dtype, {Dim()});
    ones.Each([&](int64_t at) { ones.Put(at, 1.0); });
    const OnDevice raw(raw_), qkv(qkv_), dout(out), cache(instance_.cache), norms(norms_);
    const OnDevice table(table_), position(position_), slot(slots_), weight(ones);
    NormRopeAttentionArgs a = Args(qkv.view(), dout.view(), cache.view(), norms);
    a.position = position.view();
    a.cos_sin = table.view();
    a.slot = slot.view();
    AttentionPlan plan{nullptr, 0, problem_.attention.options};
    const octavo::Result<int64_t> bytes = AttentionPlanBytes(a.attention, plan.options);
    REQUIRE(bytes.ok());
    DeviceMemory memory(bytes.value());
    memory.Fill(0xff);
    plan.memory = memory.data();
    plan.bytes = memory.size();
    if (problem_.planned) CheckDone(PlanPagedAttention(a.attention, plan, nullptr));
    CheckDone(RmsNorm({qkv.view(), raw.view(), weight.view()}, nullptr));
    std::vector<unsigned char> front;
    plan.ready = problem_.ready;
    if (fused) {
      CheckDone(problem_.planned ? NormRopeAttention(a, plan, nullptr)
                                 : NormRopeAttention(a, nullptr));
    } else {
      front = qkv.Bytes();
      CheckDone(NormRopeCache({a.attention.q, a.k, a.v, a.position, a.cos_sin, a.attention.cache,
                               a.slot, a.q_norm, a.k_norm, a.eps, a.weight_offset, a.interleaved,
                               a.attention.k_scale, a.attention.v_scale},
                              nullptr));
      CheckDone(problem_.planned ? PagedAttention(a.attention, plan, nullptr)
                                 : PagedAttention(a.attention, nullptr));
    }
    REQUIRE(DeviceFinishes());
    return {dout.Bytes(), cache.Bytes(), qkv.Bytes(), front};
  }

  FreshProblem problem_;
  Instance instance_;
  std::vector<int64_t> slots_;
  Tensor raw_, qkv_, norms_, table_;
  std::vector<int32_t> position_;
};

void CheckAll(const std::vector<FreshProblem>& problems) {
  for (const FreshProblem& p : problems) {
    CAPTURE(p.attention.seed);
    CAPTURE(p.attention.head_dim);
    CAPTURE(p.attention.group);
    CAPTURE(p.attention.window);
    CAPTURE(static_cast<int>(p.attention.dtype));
    CAPTURE(p.attention.rows.size());
    Fresh(p).Check();
  }
}

template <typename T>
T OneOf(std::mt19937_64& rng, std::initializer_list<T> values) {
  return values.begin()[rng() % values.size()];
}

// Rows of one query, in a shape that one kernel takes.
FreshProblem RandomFresh(uint64_t seed) {
  std::mt19937_64 rng(seed);
  FreshProblem f;
  Problem& p = f.attention;
  p.seed = seed;
  p.dtype = OneOf(rng, {DType::kBF16, DType::kF16});
  p.head_dim = OneOf<int64_t>(rng, {64, 128, 256});
  p.kv_heads = OneOf<int64_t>(rng, {1, 2, 3});
  p.group = OneOf<int64_t>(rng, {1, 2, 3, 4, 5, 7, 8});
  p.block_size = OneOf<int64_t>(rng, {16, 32, 48});
  p.window = OneOf<int64_t>(rng, {0, 0, 1, 7, 64, 500});
  p.chunked = p.window > 0 && rng() % 3 == 0;
  p.soft_cap = OneOf(rng, {0.0f, 0.0f, 20.0f});
  p.sinks = rng() % 3 == 0;
  p.gap = OneOf<int64_t>(rng, {0, 8, 64});
  p.options.max_queries = 1;
  p.options.fixed_split = rng() % 4 == 0;
  for (int64_t i = OneOf<int64_t>(rng, {1, 2, 4, 8, 14}); i > 0; --i) {
    const int32_t any = 1 + static_cast<int32_t>(rng() % Size(2000u, 500u));
    const int32_t edge = OneOf<int32_t>(rng, {1, 2, 15, 16, 17, 32, 33, 48, 49, 64, 65});
    p.rows.push_back({1, rng() % 8 == 0 ? 0 : rng() % 2 == 0 ? any : edge});
    if (rng() % 9 == 0) p.rows.push_back({0, edge});
  }
  p.spare_tokens = static_cast<int64_t>(rng() % 3);
  f.normed = rng() % 3 != 0;
  f.ready = rng() % 2 == 0;
  f.one_kernel = true;
  return f;
}

TEST_CASE("CUDA norm_rope_attention has the bits of its two parts on random rows of one query" *
          doctest::skip(!HasDevice())) {
  std::vector<FreshProblem> problems;
  for (uint64_t seed = 1; seed <= Size(120u, 30u); ++seed) problems.push_back(RandomFresh(seed));
  CheckAll(problems);
}

TEST_CASE("CUDA norm_rope_attention meets every place of a block with its newest key" *
          doctest::skip(!HasDevice())) {
  std::vector<FreshProblem> problems;
  for (const int64_t head_dim : {64, 128, 256}) {
    for (const int32_t first : {1, 17, 33}) {
      FreshProblem f = RandomFresh(1);
      f.attention.head_dim = head_dim;
      f.attention.kv_heads = 1;
      f.attention.block_size = 32;
      f.attention.spare_tokens = 0;
      f.attention.rows.clear();
      for (int32_t i = 0; i < 16; ++i) f.attention.rows.push_back({1, first + i});
      problems.push_back(f);
    }
  }
  CheckAll(problems);
}

// A row alone is cut into as many splits as there are CTAs; several rows of many heads leave CTAs
// with more than one segment.
TEST_CASE("CUDA norm_rope_attention cuts long rows and shares short ones out" *
          doctest::skip(!HasDevice())) {
  std::vector<FreshProblem> problems;
  for (const bool ready : {false, true}) {
    for (const bool fixed : {false, true}) {
      FreshProblem f = RandomFresh(2);
      f.ready = ready;
      f.attention.head_dim = 64;
      f.attention.window = 0;
      f.attention.chunked = false;
      f.attention.options.fixed_split = fixed;
      f.attention.kv_heads = 1;
      f.attention.spare_tokens = 0;
      f.attention.rows = {{1, Size(20000, 2500)}};
      problems.push_back(f);
      f.attention.kv_heads = Size(40, 32);
      f.attention.group = 1;
      f.attention.rows.clear();
      for (int32_t i = 0; i < 16; ++i) f.attention.rows.push_back({1, 1 + i * 7});
      problems.push_back(f);
    }
  }
  CheckAll(problems);
}

TEST_CASE("CUDA norm_rope_attention is its two kernels where one does not fit" *
          doctest::skip(!HasDevice())) {
  std::vector<FreshProblem> problems;
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    FreshProblem f = RandomFresh(seed);
    f.one_kernel = false;
    f.attention.rows = {{1, 40}, {1, 0}, {1, 17}};
    f.attention.kv_heads = 2;
    if (f.attention.group > 4) f.attention.group = 4;
    Problem& p = f.attention;
    if (seed == 1) p.group = 9;
    if (seed == 2) p.options.max_queries = 0;
    if (seed == 3) p.spare_tokens = 14;
    if (seed == 4) f.interleaved = true;
    if (seed == 5) f.rotary = 32;
    if (seed == 6) p.dtype = DType::kF32;
    if (seed == 7) p.fp8 = true;
    if (seed == 8) f.planned = false;
    if (seed == 9) p.gap = 3;
    if (seed == 10) {
      p.options.max_queries = 0;
      p.rows = {{1, 40}, {20, 33}, {3, 3}};
    }
    problems.push_back(f);
  }
  CheckAll(problems);
}

TEST_CASE("CUDA norm_rope_attention stores nothing in a slot outside the cache" *
          doctest::skip(!HasDevice())) {
  FreshProblem f = RandomFresh(3);
  f.attention.rows = {{1, 20}};
  f.attention.spare_tokens = 0;
  Fresh fresh(f);
  for (const int64_t slot : {INT64_C(-1), INT64_MAX, INT64_MIN}) CHECK(fresh.StoresNothing(slot));
}

}  // namespace
}  // namespace octavo::cuda

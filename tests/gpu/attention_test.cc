// Paged attention on CUDA beside float64 and the CPU op. Needs a CUDA device; without one every
// case that launches is skipped.
#include <cstring>

#include "attention_problem.h"
#include "backend.h"

namespace octavo::cuda {
namespace {

// Runs each problem and compares it with float64.
void CheckAll(const std::vector<Problem>& problems) {
  for (const Problem& p : problems) {
    CAPTURE(p.head_dim);
    CAPTURE(p.group);
    CAPTURE(p.block_size);
    CAPTURE(p.window);
    CAPTURE(p.chunked);
    CAPTURE(p.soft_cap);
    CAPTURE(p.sinks);
    CAPTURE(p.seed);
    CAPTURE(static_cast<int>(p.dtype));
    CAPTURE(static_cast<int>(p.prefill));
    Instance instance(p);
    instance.Run();
    instance.CheckOut(instance.Answer(), Tolerance(p.dtype));
  }
}

template <typename T>
T OneOf(std::mt19937_64& rng, std::initializer_list<T> values) {
  return values.begin()[rng() % values.size()];
}

int32_t RandomLength(std::mt19937_64& rng) {
  if (rng() % 2 == 0) return OneOf<int32_t>(rng, {1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127});
  return 1 + static_cast<int32_t>(rng() % Size(1500u, 400u));
}

Problem RandomProblem(uint64_t seed) {
  std::mt19937_64 rng(seed);
  Problem p;
  p.seed = seed;
  p.dtype = OneOf(rng, {DType::kBF16, DType::kF16});
  p.head_dim = OneOf<int64_t>(rng, {64, 128, 256});
  p.kv_heads = OneOf<int64_t>(rng, {1, 2, 3});
  p.group = OneOf<int64_t>(rng, {1, 2, 3, 4, 5, 7, 8, 12, 16, 20});
  p.block_size = OneOf<int64_t>(rng, {16, 32, 48, 64});
  p.window = OneOf<int64_t>(rng, {0, 0, 1, 7, 64, 500, 100000});
  p.soft_cap = OneOf(rng, {0.0f, 0.0f, 2.0f, 50.0f});
  p.sinks = rng() % 3 == 0;
  p.gap = OneOf<int64_t>(rng, {0, 8, 64});
  p.chunked = p.window > 0 && rng() % 3 == 0;
  return p;
}

Problem RandomDecode(uint64_t seed) {
  Problem p = RandomProblem(seed);
  std::mt19937_64 rng(seed * 7 + 1);
  p.options.max_queries = 1;
  for (int i = OneOf(rng, {1, 3, 9, Size(70, 20)}); i > 0; --i) {
    p.rows.push_back({1, rng() % 8 == 0 ? 0 : RandomLength(rng)});
  }
  p.spare_tokens = static_cast<int64_t>(rng() % 3);
  return p;
}

Problem RandomMixed(uint64_t seed) {
  Problem p = RandomProblem(seed);
  std::mt19937_64 rng(seed * 11 + 3);
  p.options.decode_queries = OneOf<int64_t>(rng, {1, 1, 2, 5});
  for (int i = OneOf(rng, {1, 4, 8}); i > 0; --i) {
    const int32_t length = RandomLength(rng);
    int32_t queries = 1;
    if (rng() % 4 != 0) queries = 1 + static_cast<int32_t>(rng() % uint64_t(length));
    if (rng() % 4 == 0) queries = std::min(length, 1 + static_cast<int32_t>(rng() % 6));
    p.rows.push_back({std::min(queries, 150), rng() % 9 == 0 ? 0 : length});
    if (rng() % 9 == 0) p.rows.push_back({0, length});
  }
  p.spare_tokens = static_cast<int64_t>(rng() % 3);
  return p;
}

TEST_CASE("CUDA decode attention is float64's on random rows" * doctest::skip(!HasDevice())) {
  std::vector<Problem> problems;
  for (uint64_t seed = 1; seed <= Size(60u, 20u); ++seed) problems.push_back(RandomDecode(seed));
  CheckAll(problems);
}

// Random rows on one of the prefill kernels.
void CheckMixed(PrefillKernel kernel, uint64_t seeds) {
  std::vector<Problem> problems;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    problems.push_back(RandomMixed(seed));
    problems.back().prefill = kernel;
  }
  CheckAll(problems);
}

TEST_CASE("CUDA mixed prefill and decode is float64's on random rows" *
          doctest::skip(!HasDevice())) {
  CheckMixed(PrefillKernel::kPortable, Size(60u, 12u));
}

TEST_CASE("CUDA mixed prefill on wgmma is float64's on random rows" * doctest::skip(!HasWgmma())) {
  CheckMixed(PrefillKernel::kWgmma, Size(60u, 16u));
}

// Rows whose lengths lie at the edges of blocks, of key tiles (128, or 80 at head dim 256) and of
// both; what lies behind a row's last token is NaN.
TEST_CASE("wgmma prefill meets the edges of blocks and key tiles" * doctest::skip(!HasWgmma())) {
  std::vector<Problem> problems;
  for (const int64_t head_dim : {64, 128, 256}) {
    for (const int64_t block_size : {16, 48}) {
      Problem p;
      p.head_dim = head_dim;
      p.block_size = block_size;
      p.kv_heads = 1;
      p.seed = 300 + static_cast<uint64_t>(head_dim + block_size);
      p.prefill = PrefillKernel::kWgmma;
      for (const int32_t edge : {16, 32, 80, 128, 160, 240, 256, 640}) {
        for (const int32_t length : {edge - 1, edge, edge + 1}) {
          p.rows.push_back({2 + length % 13, length});
        }
      }
      p.rows.push_back({33, 33});
      p.rows.push_back({0, 64});
      p.rows.push_back({3, 0});
      p.spare_tokens = 1;
      problems.push_back(p);
    }
  }
  CheckAll(problems);
}

TEST_CASE("wgmma prefill packs every group, spare rows or not" * doctest::skip(!HasWgmma())) {
  std::vector<Problem> problems;
  for (int64_t group = 1; group <= 17; ++group) {
    Problem p;
    p.head_dim = group % 3 == 0 ? 64 : group % 3 == 1 ? 128 : 256;
    p.dtype = group % 2 == 0 ? DType::kBF16 : DType::kF16;
    p.kv_heads = 2;
    p.group = group;
    p.sinks = true;
    p.seed = 400 + static_cast<uint64_t>(group);
    p.prefill = PrefillKernel::kWgmma;
    const auto tile = static_cast<int32_t>(128 / group);
    p.rows = {{tile, tile + 30}, {tile + 1, 200}, {2, 90}};
    problems.push_back(p);
  }
  CheckAll(problems);
}

TEST_CASE("wgmma prefill sees its window and no more" * doctest::skip(!HasWgmma())) {
  std::vector<Problem> problems;
  for (const int64_t head_dim : {64, 128, 256}) {
    for (const int64_t window : {1, 2, 16, 79, 80, 127, 128, 129, 300}) {
      Problem p;
      p.head_dim = head_dim;
      p.kv_heads = 1;
      p.window = window;
      p.soft_cap = window % 2 == 0 ? 0.0f : 20.0f;
      p.seed = 500 + static_cast<uint64_t>(window);
      p.prefill = PrefillKernel::kWgmma;
      p.rows = {{50, 50}, {40, 400}, {7, 161}};
      problems.push_back(p);
    }
  }
  CheckAll(problems);
}

TEST_CASE("wgmma prefill has one answer on any number of runs" * doctest::skip(!HasWgmma())) {
  Problem p = RandomMixed(5);
  p.head_dim = 128;
  p.prefill = PrefillKernel::kWgmma;
  p.rows = {{90, 500}, {150, 150}, {3, 700}};
  Instance instance(p);
  instance.Run();
  const std::vector<unsigned char> first = instance.DeviceOut();
  for (int i = 0; i < 5; ++i) {
    instance.Run();
    CHECK(instance.DeviceOut() == first);
  }
}

TEST_CASE("wgmma prefill is refused where there is none" *
          doctest::skip(!HasDevice() || HasWgmma())) {
  Problem p;
  p.rows = {{20, 20}};
  const Instance instance(p);
  AttentionCall call;
  CHECK(cpu::Refused(
      ResolveCall(instance.DeviceArgs(), p.options, {.prefill = PrefillKernel::kWgmma}, &call),
      "compute capability 9.0"));
}

TEST_CASE("CUDA decode attention covers every group size and block edge" *
          doctest::skip(!HasDevice())) {
  std::vector<Problem> problems;
  for (int64_t group = 1; group <= 8; ++group) {
    Problem p;
    p.group = group;
    p.seed = 100 + static_cast<uint64_t>(group);
    p.options.max_queries = 1;
    for (int32_t length = 0; length <= 67; ++length) p.rows.push_back({1, length});
    problems.push_back(p);
  }
  CheckAll(problems);
}

// What attends to an encoder's output: each token is a row of its own, behind which nothing is
// hidden.
TEST_CASE("CUDA attention without a plan is float64's on rows of one query" *
          doctest::skip(!HasDevice())) {
  for (const bool chunked : {false, true}) {
    Problem p;
    p.head_dim = 64;
    p.group = 1;
    p.window = chunked ? 24 : 0;
    p.chunked = chunked;
    p.rows = {{1, 0}, {1, 70}, {1, 1}, {1, 33}, {1, 48}};
    p.spare_tokens = 2;
    Instance instance(p);
    instance.device_out.Fill(0xff);
    const Status done = PagedAttention(instance.DeviceArgs(), nullptr);
    INFO(done.message());
    REQUIRE(done.ok());
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    const std::vector<unsigned char> bits = instance.DeviceOut();
    std::copy_n(bits.begin(), instance.out.bytes().size(),
                instance.out.view().ptr<unsigned char>());
    instance.CheckOut(instance.Answer(), Tolerance(p.dtype));
  }
}

TEST_CASE("CUDA decode attention splits one row of 32k over many CTAs" *
          doctest::skip(!HasDevice())) {
  std::vector<Problem> problems;
  for (const bool fixed : {false, true}) {
    for (const int64_t window : {0, Size(20000, 3500)}) {
      Problem p;
      p.kv_heads = 1;
      p.group = 8;
      p.window = window;
      p.seed = 7;
      p.options.max_queries = 1;
      p.options.fixed_split = fixed;
      p.rows = {{1, Size(32768, 6000)}, {1, 5}, {1, Size(3001, 1001)}};
      problems.push_back(p);
    }
  }
  CheckAll(problems);
}

TEST_CASE("CUDA decode attention takes a row for each of many CTAs, lengths skewed" *
          doctest::skip(!HasDevice())) {
  std::vector<Problem> problems;
  for (const bool fixed : {false, true}) {
    Problem p;
    p.kv_heads = 2;
    p.options.max_queries = 1;
    p.options.fixed_split = fixed;
    for (int i = 0; i < Size(255, 63); ++i) p.rows.push_back({1, 1 + i * 37 % 300});
    p.rows.push_back({1, Size(9000, 2000)});
    problems.push_back(p);
  }
  CheckAll(problems);
}

// Rows whose units are dealt, among them some that are short and some that do nothing.
Problem RandomDealt(uint64_t seed) {
  std::mt19937_64 rng(seed);
  Problem p;
  p.seed = seed;
  p.dtype = OneOf(rng, {DType::kBF16, DType::kF16});
  p.head_dim = OneOf<int64_t>(rng, {64, 128, 256});
  p.kv_heads = Size(8, 2);
  p.group = OneOf<int64_t>(rng, {1, 2, 4, 8, 12});
  p.sinks = seed % 3 == 0;
  p.fp8 = seed % 4 == 0;
  p.options.max_queries = 1;
  p.options.fixed_split = seed % 2 == 0;
  for (int i = 0; i < Size(120, 30); ++i) {
    const auto length = static_cast<int32_t>(i % 9 == 4 ? rng() % 40 : 600 + rng() % 600);
    p.rows.push_back({1, length});
  }
  return p;
}

TEST_CASE("CUDA decode attention deals units out, layer by layer of a plan" *
          doctest::skip(!HasDevice())) {
  for (uint64_t seed = 1; seed <= Size(12u, 4u); ++seed) {
    const Problem p = RandomDealt(seed);
    CAPTURE(seed);
    CAPTURE(p.head_dim);
    CAPTURE(p.group);
    Instance instance(p);
    instance.Run();
    CtaWork work;
    std::memcpy(&work, instance.device_plan.Bytes().data(), sizeof(work));
    CHECK(work.dealt > 0);
    instance.CheckOut(instance.Answer(), Tolerance(p.dtype));
    const std::vector<unsigned char> first = instance.DeviceOut();
    for (int layer = 0; layer < 3; ++layer) {
      instance.device_out.Fill(0xff);
      const Status s = PagedAttention(instance.DeviceArgs(), instance.plan, nullptr);
      INFO(s.message());
      REQUIRE(s.ok());
      REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
      CHECK(instance.DeviceOut() == first);
    }
  }
}

// The plain kernel has a CTA for each token and head.
Problem ForPlainKernel(Problem p) {
  if (!SmallSizes()) return p;
  p.group = std::min<int64_t>(p.group, 3);
  for (Row& r : p.rows) r.queries = std::min(r.queries, 9);
  return p;
}

TEST_CASE("CUDA attention of other dtypes and head dims runs on the plain kernel" *
          doctest::skip(!HasDevice())) {
  std::vector<Problem> problems;
  for (uint64_t seed = 1; seed <= Size(20u, 6u); ++seed) {
    Problem p = RandomMixed(seed);
    std::mt19937_64 rng(seed);
    p.dtype = OneOf(rng, {DType::kF32, DType::kF32, DType::kBF16});
    p.head_dim = OneOf<int64_t>(rng, {8, 16, 40, 80, 256});
    p.block_size = OneOf<int64_t>(rng, {1, 5, 8, 16});
    p.gap = OneOf<int64_t>(rng, {0, 3});
    problems.push_back(ForPlainKernel(p));
  }
  CheckAll(problems);
}

// Queries that float16 cannot hold come with keys that make up for it.
Problem InFp8(Problem p) {
  std::mt19937_64 rng(p.seed * 13 + 5);
  p.fp8 = true;
  p.k_scale = OneOf(rng, {1.0f, 0.7f, 0.02f});
  p.v_scale = OneOf(rng, {1.0f, 3.0f, 0.01f});
  if (p.dtype == DType::kBF16 && rng() % 2 == 0) {
    p.q_size = 1e6;
    p.k_scale *= 1e-6f;
  }
  return p;
}

TEST_CASE("CUDA attention over a cache in fp8 is float64's on random rows" *
          doctest::skip(!HasDevice())) {
  std::vector<Problem> problems;
  for (uint64_t seed = 1; seed <= Size(60u, 14u); ++seed) {
    problems.push_back(InFp8(RandomDecode(seed)));
    problems.push_back(InFp8(RandomMixed(seed)));
  }
  CheckAll(problems);
}

TEST_CASE("CUDA attention over a cache in fp8 runs on the plain kernel where it must" *
          doctest::skip(!HasDevice())) {
  std::vector<Problem> problems;
  for (uint64_t seed = 1; seed <= Size(20u, 6u); ++seed) {
    Problem p = InFp8(RandomMixed(seed));
    std::mt19937_64 rng(seed);
    p.dtype = OneOf(rng, {DType::kF32, DType::kBF16});
    p.head_dim = OneOf<int64_t>(rng, {8, 40, 80, 256});
    p.block_size = OneOf<int64_t>(rng, {1, 5, 16});
    p.gap = OneOf<int64_t>(rng, {0, 3});
    problems.push_back(ForPlainKernel(p));
  }
  CheckAll(problems);
}

TEST_CASE("CUDA attention is the CPU op's on a long prefill" * doctest::skip(!HasDevice())) {
  for (const int64_t head_dim : {64, 128, 256}) {
    Problem p;
    p.head_dim = head_dim;
    p.seed = 5;
    p.rows = {{700, 2300}, {1, 900}, {1500, 1500}, {64, 4000}};
    if (SmallSizes()) p.rows = {{90, 290}, {1, 900}, {190, 190}, {64, 500}};
    Instance instance(p);
    instance.Run();
    const std::vector<unsigned char> got = instance.out.bytes();
    REQUIRE(cpu::PagedAttention(instance.HostArgs()).ok());
    std::vector<double> answer;
    for (int64_t i = 0; i < instance.out.view().num_elements(); ++i) {
      answer.push_back(instance.out.Get(i));
    }
    std::copy(got.begin(), got.end(), instance.out.view().ptr<unsigned char>());
    instance.CheckOut(answer, Tolerance(p.dtype));
  }
}

TEST_CASE("CUDA attention repeats bit for bit" * doctest::skip(!HasDevice())) {
  Problem p = RandomMixed(3);
  p.rows = {{1, Size(12000, 1200)}, {1, 77}, {90, 500}, {1, Size(3000, 300)}, {1, Size(4000, 400)}};
  Instance instance(p);
  instance.Run();
  const std::vector<unsigned char> first = instance.DeviceOut();
  for (int i = 0; i < Size(20, 2); ++i) {
    instance.Run();
    CHECK(instance.DeviceOut() == first);
  }
}

TEST_CASE("CUDA attention by a plan of an earlier kernel has the same bits" *
          doctest::skip(!HasDevice())) {
  for (uint64_t seed = 1; seed <= Size(30u, 10u); ++seed) {
    CAPTURE(seed);
    Problem problem = seed % 2 == 0 ? RandomDecode(seed) : RandomMixed(seed);
    if (seed % 3 == 0) problem.fp8 = true;
    Instance instance(problem);
    instance.Run();
    const std::vector<unsigned char> first = instance.DeviceOut();
    AttentionPlan plan = instance.plan;
    plan.ready = true;
    instance.device_out.Fill(0xff);  // the kernel in front, which no part of a plan comes from
    const Status s = PagedAttention(instance.DeviceArgs(), plan, nullptr);
    INFO(s.message());
    REQUIRE(s.ok());
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(instance.DeviceOut() == first);
  }
}

TEST_CASE("a row's bits are the same in any batch with fixed splits" *
          doctest::skip(!HasDevice())) {
  Problem alone;
  alone.options.fixed_split = true;
  alone.options.max_queries = 1;
  const int32_t length = Size(7000, 1500);
  alone.rows = {{1, length}};
  Problem batch = alone;
  for (int i = 0; i < Size(255, 40); ++i) batch.rows.push_back({1, 1 + i * 53 % 900});
  Instance one(alone), many(batch);
  one.Run();
  // The batch's first row gets the lone row's query and blocks.
  many.Run();
  const int64_t heads = alone.kv_heads * alone.group * alone.head_dim;
  for (int64_t i = 0; i < heads; ++i) many.q.Put(i, one.q.Get(i));
  many.device_q.Copy(many.q.bytes().data(), int64_t(many.q.bytes().size()));
  for (int64_t t = 0; t < length; ++t) {
    const auto block = static_cast<size_t>(t / 16);
    const int32_t from = one.table[block];
    const int32_t to = many.table[size_t(many.row_slot[0] * many.max_blocks) + block];
    for (int64_t kv = 0; kv < 2; ++kv) {
      for (int64_t h = 0; h < alone.kv_heads; ++h) {
        for (int64_t d = 0; d < alone.head_dim; ++d) {
          many.cache.Set({to, kv, h, t % 16, d}, one.cache.At({from, kv, h, t % 16, d}));
        }
      }
    }
  }
  many.device_cache.Copy(many.cache.bytes().data(), int64_t(many.cache.bytes().size()));
  many.Run();
  int64_t differ = 0;
  for (int64_t i = 0; i < heads; ++i) {
    differ += one.out.view().ptr<uint16_t>()[i] != many.out.view().ptr<uint16_t>()[i] ? 1 : 0;
  }
  CHECK(differ == 0);
}

TEST_CASE("a captured step follows lengths that change on the device" *
          doctest::skip(!HasDevice())) {
  Problem p;
  p.rows = {{1, Size(4000, 1000)}, {1, 300}, {40, Size(2000, 400)}, {1, 17}};
  Instance instance(p);
  instance.Run();
  const CapturedStep step(instance);
  for (const int32_t less : {0, 1, 200, 299, 300}) {
    for (size_t r : {0u, 1u}) {
      instance.seq_len[r] = p.rows[r].length - less;
      instance.problem.rows[r].length = instance.seq_len[r];
    }
    instance.device_seq_len.Copy(instance.seq_len.data(), int64_t(instance.seq_len.size() * 4));
    instance.Run();
    const std::vector<unsigned char> eager = instance.DeviceOut();
    instance.CheckOut(instance.Answer(), Tolerance(p.dtype));
    step.CheckReplays(&instance, eager);
  }
}

TEST_CASE("CUDA attention reaches blocks beyond 2^31 elements" * doctest::skip(!HasDevice())) {
  constexpr int64_t kStride = INT64_C(1) << 29;  // elements between blocks: the pool spans 12 GB
  for (const int32_t queries : {1, 40}) {
    Problem p;
    p.kv_heads = 1;
    p.rows = {{queries, 130}};
    Instance instance(p);
    instance.Run();
    const std::vector<unsigned char> near = instance.DeviceOut();
    const int64_t blocks = instance.cache.dim(0), used = instance.cache.view().stride[0] * 2;
    DeviceMemory far_pool(blocks * kStride * 2);
    for (int64_t b = 0; b < blocks; ++b) {
      REQUIRE(cudaMemcpy(static_cast<char*>(far_pool.data()) + b * kStride * 2,
                         instance.cache.bytes().data() + b * used, static_cast<size_t>(used),
                         cudaMemcpyHostToDevice) == cudaSuccess);
    }
    PagedAttentionArgs a = instance.DeviceArgs();
    a.cache.data = far_pool.data();
    a.cache.stride[0] = kStride;
    instance.device_out.Fill(0xff);
    REQUIRE(PlanPagedAttention(a, instance.plan, nullptr).ok());
    REQUIRE(PagedAttention(a, instance.plan, nullptr).ok());
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(instance.DeviceOut() == near);
  }
}

TEST_CASE("CUDA attention refuses a plan without memory for it" * doctest::skip(!HasDevice())) {
  Problem p;
  p.rows = {{1, 20}};
  Instance instance(p);
  const Status s = PlanPagedAttention(instance.DeviceArgs(), {nullptr, 16, {}}, nullptr);
  CHECK(cpu::Refused(s, "AttentionPlanBytes"));
}

}  // namespace
}  // namespace octavo::cuda

// What a batch-invariant model computes on CUDA: a row's bits, whoever stands beside it and however
// its prompt is cut.
#include <numeric>

#include "answers.h"
#include "attention_problem.h"
#include "backend.h"
#include "device.h"
#include "gemm/call.h"
#include "octavo/cuda_ops.h"

namespace octavo::cuda {
namespace {

using cpu::Tensor;

constexpr GemmTile kTiles[] = {GemmTile::kLow, GemmTile::kMiddle, GemmTile::kHigh};

struct Product {
  int64_t m, n, k;
  int64_t gap = 0;  // elements between rows of x and the weight
  bool bias = false;
  int64_t out_gap = 5;
};

struct Operands {
  Operands(const Product& p, DType dtype, std::mt19937_64& rng)
      : x(dtype, {p.m, p.k}, p.gap), weight(dtype, {p.n, p.k}, p.gap), bias(dtype, {p.n}) {
    x.Randomize(rng);
    weight.Randomize(rng, 1.0 / std::sqrt(static_cast<double>(p.k)));
    bias.Randomize(rng);
  }
  Tensor x, weight, bias;
};

TensorView RowsFrom(const OnDevice& t, int64_t first, int64_t count) {
  TensorView v = t.view();
  v.data = v.ptr<uint16_t>() + first * v.stride[0];
  v.shape[0] = count;
  return v;
}

void CheckAnswer(const Product& p, const std::vector<double>& answer, const Tensor& out) {
  double error = 0.0, norm = 0.0;
  for (int64_t m = 0; m < p.m; ++m) {
    for (int64_t n = 0; n < p.n; ++n) {
      const double want = answer[static_cast<size_t>(m * p.n + n)];
      const double difference = out.At({m, n}) - want;
      error += difference * difference;
      norm += want * want;
    }
    const int64_t row = m * (p.n + p.out_gap);
    for (int64_t n = p.n; n < p.n + p.out_gap; ++n) CHECK(std::isnan(out.Get(row + n)));
  }
  const double relative = std::sqrt(error / norm);
  CAPTURE(relative);
  CHECK(relative < (out.view().dtype == DType::kBF16 ? 3e-3 : 4e-4));
}

TEST_CASE("gemm is float64's product, and its tiles agree in every bit" *
          doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(1);
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    for (const Product p :
         {Product{1, 8, 8}, Product{3, 33, 72, 8, true}, Product{16, 32, 64, 0, false, 0},
          Product{17, 130, 328, 0, true, 1}, Product{Size<int64_t>(129, 65), 131, 200, 8, true, 2},
          Product{Size<int64_t>(300, 5), Size<int64_t>(1000, 90), Size<int64_t>(4096, 1032)}}) {
      CAPTURE(p.m);
      CAPTURE(p.n);
      CAPTURE(p.k);
      CAPTURE(static_cast<int>(dtype));
      const Operands o(p, dtype, rng);
      const OnDevice x(o.x), weight(o.weight), bias(o.bias);
      const std::vector<double> answer = ProductOf(o.x, o.weight, p.bias ? &o.bias : nullptr);
      std::vector<unsigned char> first;
      for (const GemmTile tile : kTiles) {
        CAPTURE(static_cast<int>(tile));
        Tensor out(dtype, {p.m, p.n}, p.out_gap);
        const OnDevice to(out);
        GemmArgs a{to.view(), x.view(), weight.view(), std::nullopt};
        if (p.bias) a.bias = bias.view();
        CheckDone(EnqueueGemm(a, tile, nullptr));
        REQUIRE(DeviceFinishes());
        to.FetchTo(&out);
        CheckAnswer(p, answer, out);
        if (first.empty()) first = to.Bytes();
        CHECK(to.Bytes() == first);
      }
    }
  }
}

TEST_CASE("a row of gemm has the same bits in a batch of any size" * doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(2);
  const Product p{
      Size<int64_t>(700, 70), Size<int64_t>(900, 72), Size<int64_t>(1096, 136), 0, true, 0};
  const Operands o(p, DType::kBF16, rng);
  const Tensor out(DType::kBF16, {p.m, p.n});
  const OnDevice x(o.x), weight(o.weight), bias(o.bias), together(out), parts(out);
  CheckDone(Gemm({together.view(), x.view(), weight.view(), bias.view()}, nullptr));
  for (int64_t m = 0; m < p.m;) {
    const int64_t sizes[] = {1, 2, 16, 17, 40, 260};
    const int64_t count = std::min(p.m - m, sizes[rng() % 6]);
    CheckDone(Gemm({RowsFrom(parts, m, count), RowsFrom(x, m, count), weight.view(), bias.view()},
                   nullptr));
    m += count;
  }
  REQUIRE(DeviceFinishes());
  CHECK(parts.Bytes() == together.Bytes());
}

TEST_CASE("gemm of nothing is nothing, and what it cannot do is refused" *
          doctest::skip(!HasDevice())) {
  const Tensor half(DType::kBF16, {4, 64}), wide(DType::kF32, {4, 64}), sum(DType::kF32, {4, 4});
  const Tensor out(DType::kBF16, {4, 4}), none(DType::kBF16, {0, 64}), empty(DType::kBF16, {0, 4});
  const OnDevice x(half), w(half), x32(wide), w32(wide), out32(sum), to(out), no_x(none),
      no_out(empty);
  CheckDone(Gemm({no_out.view(), no_x.view(), w.view(), std::nullopt}, nullptr));
  cpu::Refused(Gemm({out32.view(), x32.view(), w32.view(), std::nullopt}, nullptr), "float32");
  TensorView odd = x.view(), odd_weight = w.view();
  odd.shape[1] = odd_weight.shape[1] = 60;
  cpu::Refused(Gemm({to.view(), odd, odd_weight, std::nullopt}, nullptr), "16 bytes");
}

// The rows of `whole`, each cut into chunks that are rows of their own over the same keys.
struct Chunks {
  Chunks(const Instance& whole, std::mt19937_64& rng) {
    for (size_t r = 0; r < whole.row_slot.size(); ++r) {
      for (int32_t left = whole.problem.rows[r].queries; left > 0;) {
        const int32_t sizes[] = {1, 1, 2, 3, 17, 40, 150};
        const int32_t count = std::min(left, sizes[rng() % 7]);
        left -= count;
        start.push_back(start.back() + count);
        length.push_back(whole.seq_len[r] - left);
        slot.push_back(whole.row_slot[r]);
      }
    }
  }
  std::vector<int32_t> start = {0}, length, slot;
};

std::vector<unsigned char> OutOf(const Instance& instance, PagedAttentionArgs a,
                                 const AttentionOptions& options) {
  a.invariant = options.decode_queries == 0;
  const Result<int64_t> bytes = AttentionPlanBytes(a, options);
  REQUIRE(bytes.ok());
  const DeviceMemory memory(bytes.value() + 256);
  const AttentionPlan plan{memory.data(), memory.size(), options};
  CheckDone(PlanPagedAttention(a, plan, nullptr));
  CheckDone(PagedAttention(a, plan, nullptr));
  REQUIRE(DeviceFinishes());
  return instance.DeviceOut();
}

// Whether some byte of the output changes as prompts come in chunks.
bool ChunksMatter(Instance* instance, const std::vector<double>& answer, int64_t decode_queries,
                  std::mt19937_64& rng) {
  AttentionOptions options = instance->problem.options;
  options.decode_queries = decode_queries;
  instance->device_out.Fill(0xff);
  const std::vector<unsigned char> whole = OutOf(*instance, instance->DeviceArgs(), options);
  memcpy(instance->out.view().data, whole.data(), instance->out.bytes().size());
  instance->CheckOut(answer, 8e-3);
  Chunks chunks(*instance, rng);
  const OnDevice start(chunks.start), length(chunks.length), slot(chunks.slot);
  PagedAttentionArgs a = instance->DeviceArgs();
  a.query_start = start.view();
  a.seq_len = length.view();
  a.row_slot = slot.view();
  instance->device_out.Fill(0xff);
  return OutOf(*instance, a, options) != whole;
}

Problem Prompts(uint64_t seed, int64_t head_dim) {
  std::mt19937_64 rng(seed);
  Problem p;
  p.seed = seed;
  p.dtype = rng() % 2 == 0 ? DType::kBF16 : DType::kF16;
  p.head_dim = head_dim;
  p.kv_heads = 1 + static_cast<int64_t>(rng() % 2);
  p.group = 1 + static_cast<int64_t>(rng() % 5);
  const int64_t windows[] = {0, 0, 7, 64, 100};
  p.window = windows[rng() % 5];
  p.soft_cap = rng() % 3 == 0 ? 20.0f : 0.0f;
  p.sinks = rng() % 3 == 0;
  const auto longest = static_cast<uint64_t>(Size(900, 200));
  for (int i = 0; i < Size(4, 2); ++i) {
    const auto length = static_cast<int32_t>(1 + rng() % longest);
    p.rows.push_back({length, length});
  }
  return p;
}

TEST_CASE("without a decode kernel a query has the same bits in any chunk of its prompt" *
          doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(3);
  int without = 0;
  for (uint64_t seed = 0; seed < Size<uint64_t>(40, 6); ++seed) {
    CAPTURE(seed);
    const int64_t dims[] = {64, 128, 256};
    Instance instance(Prompts(seed, dims[seed % 3]));
    const std::vector<double> answer = instance.Answer();
    CHECK(!ChunksMatter(&instance, answer, 0, rng));
    without += ChunksMatter(&instance, answer, 1, rng) ? 1 : 0;
  }
  CHECK(without > 0);
}

TEST_CASE("an invariant call with a decode kernel is refused" * doctest::skip(!HasDevice())) {
  Problem p;
  p.rows = {{1, 5}};
  const Instance instance(p);
  PagedAttentionArgs a = instance.DeviceArgs();
  a.invariant = true;
  cpu::Refused(PagedAttention(a, AttentionPlan{}, nullptr), "decode_queries 1, need 0");
  CheckDone(PagedAttention(a, nullptr));  // the plain kernel takes a query at a time
  CHECK(DeviceFinishes());
}

TEST_CASE("an invariant norm of a row has the same bits among more than a thousand" *
          doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(4);
  const int64_t rows = 1030, n = 1536;  // from 1024 rows on fewer threads take a row
  Tensor x(DType::kBF16, {rows, n}), weight(DType::kBF16, {n});
  x.Randomize(rng);
  weight.Randomize(rng);
  const Tensor poisoned(DType::kBF16, {rows, n});
  const OnDevice from(x), w(weight), together(poisoned), parts(poisoned);
  RmsNormArgs a{together.view(), from.view(), w.view(), 1e-6f};
  CheckDone(RmsNorm(a, nullptr));
  REQUIRE(DeviceFinishes());
  const std::vector<unsigned char> varying = together.Bytes();
  a.invariant = true;
  CheckDone(RmsNorm(a, nullptr));
  for (int64_t first : {int64_t{0}, int64_t{700}}) {
    const int64_t count = first == 0 ? 700 : rows - 700;
    a.out = RowsFrom(parts, first, count);
    a.x = RowsFrom(from, first, count);
    CheckDone(RmsNorm(a, nullptr));
  }
  REQUIRE(DeviceFinishes());
  CHECK(parts.Bytes() == together.Bytes());
  CHECK(parts.Bytes() != varying);
  // The residual's norm as well, whose sums then go on in place.
  const OnDevice added(x), start(x), alone_added(x), alone_start(x);
  AddRmsNormArgs b{added.view(), added.view(), start.view(), w.view(), 1e-6f};
  b.invariant = true;
  CheckDone(AddRmsNorm(b, nullptr));
  for (int64_t first : {int64_t{0}, int64_t{700}}) {
    const int64_t count = first == 0 ? 700 : rows - 700;
    b.out = b.x = RowsFrom(alone_added, first, count);
    b.residual = RowsFrom(alone_start, first, count);
    CheckDone(AddRmsNorm(b, nullptr));
  }
  REQUIRE(DeviceFinishes());
  CHECK(alone_added.Bytes() == added.Bytes());
  CHECK(alone_start.Bytes() == start.Bytes());
}

}  // namespace
}  // namespace octavo::cuda

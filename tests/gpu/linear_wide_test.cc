// The CUDA product of 17 to 512 rows on wgmma beside the CPU op, in every tile and cut of k.
#include <string>

#include "backend.h"
#include "cpu/tensor.h"
#include "device.h"
#include "linear/linear_wgmma.h"
#include "octavo/cuda_ops.h"

namespace octavo::cuda {
namespace {

using cpu::Tensor;

constexpr int kManyClusters = 1 << 30;  // one for each tile

bool HasWgmma() { return HasDevice() && CurrentDeviceFacts().value().wgmma; }

struct Case {
  DType dtype = DType::kBF16;
  int64_t m = 17, n = 16, k = 64;  // n: columns of out
  Gate gate = Gate::kNone;
  bool biased = false, add = false, ahead = false;
  int64_t weight_rows() const { return gate == Gate::kNone ? n : 2 * n; }
};

std::string Describe(const Case& c) {
  return "m " + std::to_string(c.m) + " n " + std::to_string(c.n) + " k " + std::to_string(c.k) +
         " gate " + std::to_string(static_cast<int>(c.gate)) + (c.biased ? " bias" : "") +
         (c.add ? " add" : "") + (c.ahead ? " ahead" : "") +
         (c.dtype == DType::kF16 ? " f16" : " bf16");
}

struct Operands {
  explicit Operands(const Case& c)
      : c(c),
        x(c.dtype, {c.m, c.k}, 8),
        weight(c.dtype, {c.weight_rows(), c.k}, 16),
        bias(c.dtype, {c.weight_rows()}),
        out(c.dtype, {c.m, c.n}, 8) {}

  void Randomize(std::mt19937_64& rng) {
    x.Randomize(rng);
    bias.Randomize(rng);
    weight.Randomize(rng, 1.0 / std::sqrt(static_cast<double>(c.k)));
    if (c.add) out.Randomize(rng);
  }

  // Numbers whose products and sums are exact in any order.
  void MakeExact(std::mt19937_64& rng) {
    const auto fill = [&](Tensor& t) {
      t.Each([&](int64_t at) { t.Put(at, static_cast<double>(rng() % 5) - 2.0); });
    };
    for (Tensor* t : {&x, &weight, &bias}) fill(*t);
    if (c.add) fill(out);
  }

  LinearArgs Args(const TensorView& to, const TensorView& from, const TensorView& w,
                  const TensorView& b) const {
    LinearArgs a{to, from, w, std::nullopt, c.ahead};
    if (c.biased) a.bias = b;
    a.gate = c.gate;
    a.add = c.add;
    return a;
  }

  Tensor OnCpu() const {
    Tensor to = out;
    CheckDone(cpu::Linear(Args(to.view(), x.view(), weight.view(), bias.view())));
    return to;
  }

  // By the op, or in a tile of the caller's choice.
  Tensor OnCuda(const WideChoice* choice = nullptr) const {
    const OnDevice to(out), from(x), w(weight), b(bias);
    const LinearArgs a = Args(to.view(), from.view(), w.view(), b.view());
    CheckDone(choice == nullptr ? Linear(a, nullptr) : LaunchWide(a, *choice, nullptr));
    REQUIRE(DeviceFinishes());
    Tensor got = out;
    to.FetchTo(&got);
    return got;
  }

  const Case c;
  Tensor x, weight, bias, out;
};

void CheckGaps(const Case& c, const Tensor& got) {
  for (int64_t i = 0; i + 1 < c.m; ++i) {
    for (int64_t j = 0; j < 8; ++j) REQUIRE(std::isnan(got.Get(got.Offset({i, c.n + j}))));
  }
}

void CheckEqual(const Case& c, const Tensor& got, const Tensor& want) {
  int64_t wrong = 0;
  for (int64_t r = 0; r < c.m; ++r) {
    for (int64_t j = 0; j < c.n; ++j) wrong += got.At({r, j}) != want.At({r, j});
  }
  CHECK(wrong == 0);
  CheckGaps(c, got);
}

void CheckNear(const Case& c, const Tensor& got, const Tensor& want) {
  double error = 0.0, size = 0.0;
  for (int64_t r = 0; r < c.m; ++r) {
    for (int64_t j = 0; j < c.n; ++j) {
      const double d = got.At({r, j}) - want.At({r, j});
      error += d * d;
      size += want.At({r, j}) * want.At({r, j});
    }
  }
  // Other sums fall on the other side of some roundings.
  CHECK(std::sqrt(error) <= (c.dtype == DType::kBF16 ? 0x1p-7 : 0x1p-10) * std::sqrt(size));
  CheckGaps(c, got);
}

Case RandomCase(std::mt19937_64& rng, int64_t m) {
  constexpr Gate kGates[] = {Gate::kNone, Gate::kSilu, Gate::kGeluTanh};
  Case c;
  c.dtype = rng() % 2 == 0 ? DType::kBF16 : DType::kF16;
  c.m = m;
  c.n = 16 * (1 + static_cast<int64_t>(rng() % 12));
  c.k = 64 * (1 + static_cast<int64_t>(rng() % 6));
  c.gate = kGates[rng() % 3];
  c.biased = rng() % 2 == 0;
  c.add = rng() % 2 == 0;
  c.ahead = rng() % 2 == 0;
  return c;
}

TEST_CASE("a wgmma product has the CPU op's bits in every tile and cut of k" *
          doctest::skip(!HasWgmma())) {
  std::mt19937_64 rng(41);
  const int shared = CurrentDeviceFacts().value().shared_per_block;
  for (const WideTile& tile : kWideTiles) {
    for (const int splits : {1, 2, 3, kMaxWideCluster}) {
      for (const int stages : {2, 3, 5}) {
        // Of two clusters one does several tiles.
        const int clusters = rng() % 2 == 0 ? 2 : kManyClusters;
        const WideChoice choice{tile.rows, tile.tokens, splits, stages, clusters};
        if (WideSharedBytes(choice) > shared) continue;
        Case c = RandomCase(rng, 1 + static_cast<int64_t>(rng() % (tile.tokens + 40)));
        c.gate = Gate::kNone;
        c.k = Max<int64_t>(c.k, 128 * splits - 64);
        CAPTURE(Describe(c));
        CAPTURE(tile.rows);
        CAPTURE(tile.tokens);
        CAPTURE(splits);
        CAPTURE(stages);
        CAPTURE(clusters);
        Operands o(c);
        o.MakeExact(rng);
        CheckEqual(c, o.OnCuda(&choice), o.OnCpu());
      }
    }
  }
}

TEST_CASE("a wgmma product with a gate is the CPU op's in every tile" *
          doctest::skip(!HasWgmma())) {
  std::mt19937_64 rng(42);
  for (const WideTile& tile : kWideTiles) {
    for (const Gate gate : {Gate::kSilu, Gate::kGeluTanh}) {
      const int splits = gate == Gate::kSilu ? 1 : 2;
      const WideChoice choice{tile.rows, tile.tokens, splits, 2, 2};
      Case c = RandomCase(rng, tile.tokens + (gate == Gate::kSilu ? 21 : -3));
      c.gate = gate;
      c.k = Max<int64_t>(c.k, 128 * splits - 64);
      CAPTURE(Describe(c));
      CAPTURE(tile.rows);
      CAPTURE(tile.tokens);
      Operands o(c);
      o.Randomize(rng);
      CheckNear(c, o.OnCuda(&choice), o.OnCpu());
    }
  }
}

TEST_CASE("a CUDA product of 17 to 512 rows is the CPU op's" * doctest::skip(!HasWgmma())) {
  std::mt19937_64 rng(43);
  for (int64_t m = 17; m <= 512; m += m <= 300 ? Size(5, 47) : 53) {
    const Case c = RandomCase(rng, m);
    CAPTURE(Describe(c));
    Operands o(c);
    o.Randomize(rng);
    CheckNear(c, o.OnCuda(), o.OnCpu());
  }
}

// Each kernel reads what the one in front of it writes; the weights it may read ahead.
TEST_CASE("a chain of wgmma products that read weights ahead repeats bit for bit" *
          doctest::skip(!HasWgmma())) {
  std::mt19937_64 rng(44);
  const int64_t hidden = Size(1024, 64), inner = Size(3072, 128);
  const Case up_case{DType::kBF16, 40, inner, hidden, Gate::kSilu};
  const Case down_case{DType::kBF16, 40, hidden, inner};
  Operands up(up_case), down(down_case);
  up.Randomize(rng);
  down.Randomize(rng);
  const OnDevice up_weight(up.weight), down_weight(down.weight);
  std::vector<unsigned char> first;
  for (const bool ahead : {false, true, true, true}) {
    const OnDevice residual(up.x), between(Tensor(DType::kBF16, {40, inner}));
    for (int i = 0; i < 4; ++i) {
      LinearArgs a{between.view(), residual.view(), up_weight.view(), std::nullopt, ahead};
      a.gate = Gate::kSilu;
      CheckDone(Linear(a, nullptr));
      LinearArgs b{residual.view(), between.view(), down_weight.view(), std::nullopt, ahead};
      b.add = true;
      CheckDone(Linear(b, nullptr));
    }
    if (first.empty()) first = residual.Bytes();
    CHECK(residual.Bytes() == first);
  }
}

TEST_CASE("a CUDA product of more than 16 rows refuses what it has no kernel for" *
          doctest::skip(!HasWgmma())) {
  const auto refused = [](Case c, const char* why, bool normed = false) {
    Operands o(c);
    Tensor norm(c.dtype, {c.k});
    LinearArgs a = o.Args(o.out.view(), o.x.view(), o.weight.view(), o.bias.view());
    if (normed) a.norm = norm.view();
    CHECK(cpu::Refused(Linear(a, nullptr), why));
  };
  refused({DType::kBF16, 17, 16, 72}, "x has 17 rows, from 17 on CUDA needs columns in");
  refused({DType::kBF16, 17, 24, 64}, "rows of the weight in multiples of 16");
  refused({DType::kBF16, 17, 16, 64}, "no norm", true);
  refused({DType::kBF16, 513, 16, 64}, "x has 513 rows, need at most 512");
}

}  // namespace
}  // namespace octavo::cuda

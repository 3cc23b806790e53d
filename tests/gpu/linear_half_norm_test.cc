// A norm between two CUDA products on wgmma, half of it in each, beside float64 and beside the
// CPU's norm and product.
#include <string>

#include "backend.h"
#include "cpu/tensor.h"
#include "device.h"
#include "linear/linear_wgmma.h"
#include "octavo/cuda_ops.h"

namespace octavo::cuda {
namespace {

using cpu::Tensor;

constexpr DType kType = DType::kBF16;
constexpr int64_t kGap = 8;  // elements between rows
constexpr float kEps = 1e-5f;

bool HasWgmma() { return HasDevice() && CurrentDeviceFacts().value().wgmma; }

struct Case {
  int64_t m = 17, n = 16, k = 64;  // n: columns of out
  Gate gate = Gate::kNone;
  bool biased = false, add = false, ahead = false;
  float offset = 0.0f;
  int64_t weight_rows() const { return gate == Gate::kNone ? n : 2 * n; }
};

std::string Describe(const Case& c) {
  return "m " + std::to_string(c.m) + " n " + std::to_string(c.n) + " k " + std::to_string(c.k) +
         " gate " + std::to_string(static_cast<int>(c.gate)) + (c.biased ? " bias" : "") +
         (c.add ? " add" : "") + (c.ahead ? " ahead" : "") + (c.offset == 0.0f ? "" : " offset");
}

Case RandomCase(std::mt19937_64& rng, int64_t m) {
  Case c;
  c.m = m;
  c.n = 16 * (1 + static_cast<int64_t>(rng() % 12));
  c.k = 64 * (1 + static_cast<int64_t>(rng() % 6));
  c.biased = rng() % 2 == 0;
  c.add = rng() % 2 == 0;
  c.ahead = rng() % 2 == 0;
  c.offset = rng() % 2 == 0 ? 0.0f : 1.0f;
  return c;
}

// The norm of rows of n columns, and what a product leaves of it.
struct Half {
  Half(int64_t m, int64_t n)
      : weight(kType, {n}),
        scaled(kType, {m, n}, kGap),
        squares(DType::kF32, {m, SquaresOf(n)}, 4) {}

  Tensor weight, scaled, squares;
};

// What stands for the product that left it, of these rows.
void MakeHalf(const Tensor& rows, float offset, Half* half) {
  const int64_t n = rows.dim(1);
  for (int64_t r = 0; r < rows.dim(0); ++r) {
    for (int64_t g = 0; g * kSquaresColumns < n; ++g) {
      double sum = 0.0;
      for (int64_t j = g * kSquaresColumns; j < Min(n, (g + 1) * kSquaresColumns); ++j) {
        const double x = rows.At({r, j});
        sum += x * x;
        half->scaled.Set({r, j}, x * (half->weight.At({j}) + offset));
      }
      half->squares.Set({r, g}, sum);
    }
  }
}

struct Operands {
  Operands(const Case& c, std::mt19937_64& rng)
      : c(c),
        x(kType, {c.m, c.k}, kGap),
        weight(kType, {c.weight_rows(), c.k}, 16),
        bias(kType, {c.weight_rows()}),
        out(kType, {c.m, c.n}, kGap) {
    x.Randomize(rng);
    bias.Randomize(rng);
    weight.Randomize(rng, 1.0 / std::sqrt(static_cast<double>(c.k)));
    if (c.add) out.Randomize(rng);
  }

  LinearArgs Args(const TensorView& to, const TensorView& from, const TensorView& w,
                  const TensorView& b) const {
    LinearArgs a{to, from, w, std::nullopt, c.ahead};
    if (c.biased) a.bias = b;
    a.gate = c.gate;
    a.add = c.add;
    a.eps = kEps;
    return a;
  }

  const Case c;
  Tensor x, weight, bias, out;
};

Status Run(const LinearArgs& a, const WideChoice* choice) {
  return choice == nullptr ? Linear(a, nullptr) : LaunchWide(a, *choice, nullptr);
}

// Out alone, or with half of a norm beside it.
Tensor Leaving(const Operands& o, const WideChoice* choice, Half* half) {
  const OnDevice to(o.out), from(o.x), w(o.weight), b(o.bias);
  LinearArgs a = o.Args(to.view(), from.view(), w.view(), b.view());
  Tensor got = o.out;
  if (half == nullptr) {
    CheckDone(Run(a, choice));
    REQUIRE(DeviceFinishes());
    to.FetchTo(&got);
    return got;
  }
  const OnDevice g(half->weight), scaled(half->scaled), squares(half->squares);
  a.leaves = HalfNorm{g.view(), o.c.offset, scaled.view(), squares.view()};
  CheckDone(Run(a, choice));
  REQUIRE(DeviceFinishes());
  to.FetchTo(&got);
  scaled.FetchTo(&half->scaled);
  squares.FetchTo(&half->squares);
  return got;
}

// The product of half of a norm.
Tensor Taking(const Operands& o, const WideChoice* choice, const Half& half) {
  const OnDevice to(o.out), from(half.scaled), w(o.weight), b(o.bias), squares(half.squares);
  LinearArgs a = o.Args(to.view(), from.view(), w.view(), b.view());
  a.squares = squares.view();
  CheckDone(Run(a, choice));
  REQUIRE(DeviceFinishes());
  Tensor got = o.out;
  to.FetchTo(&got);
  return got;
}

void CheckGaps(const Tensor& got) {
  for (int64_t i = 0; i + 1 < got.dim(0); ++i) {
    for (int64_t j = 0; j < kGap; ++j) {
      REQUIRE(std::isnan(got.Get(got.Offset({i, got.dim(1) + j}))));
    }
  }
}

void CheckLeft(const Case& c, const Tensor& out, const Half& half) {
  Half want(c.m, c.n);
  want.weight = half.weight;
  MakeHalf(out, c.offset, &want);
  int64_t wrong = 0;
  for (int64_t r = 0; r < c.m; ++r) {
    for (int64_t j = 0; j < c.n; ++j) wrong += half.scaled.At({r, j}) != want.scaled.At({r, j});
    for (int64_t g = 0; g < SquaresOf(c.n); ++g) {
      const double sum = want.squares.At({r, g}), got = half.squares.At({r, g});
      wrong += std::isnan(sum) ? !std::isnan(got) : !(std::abs(got - sum) <= 1e-6 * sum);
    }
  }
  CHECK(wrong == 0);
  CheckGaps(half.scaled);
}

TEST_CASE("a wgmma product leaves half of a norm in every tile and cut of k, and out as without" *
          doctest::skip(!HasWgmma())) {
  std::mt19937_64 rng(51);
  for (const WideTile& tile : kWideTiles) {
    if (WideMovesRegisters(tile.rows, tile.tokens)) continue;
    for (int splits = 1; splits <= kMaxWideCluster; ++splits) {
      const WideChoice choice{tile.rows, tile.tokens, splits, 2, rng() % 2 == 0 ? 2 : 1 << 30};
      Case c = RandomCase(rng, 1 + static_cast<int64_t>(rng() % (tile.tokens + 40)));
      c.k = Max<int64_t>(c.k, 128 * splits - 64);
      CAPTURE(Describe(c));
      CAPTURE(tile.rows);
      CAPTURE(tile.tokens);
      CAPTURE(splits);
      const Operands o(c, rng);
      Half half(c.m, c.n);
      half.weight.Randomize(rng);
      const Tensor got = Leaving(o, &choice, &half), alone = Leaving(o, &choice, nullptr);
      CHECK(got.bytes() == alone.bytes());
      CheckLeft(c, got, half);
    }
  }
}

double Open(Gate gate, double x) {
  if (gate == Gate::kSilu) return x / (1.0 + std::exp(-x));
  return 0.5 * x * (1.0 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}

// The product of the norm of o.x in float64.
std::vector<double> Exact(const Operands& o, const Tensor& norm) {
  const Case& c = o.c;
  std::vector<double> out(static_cast<size_t>(c.m * c.n)), y(static_cast<size_t>(c.k));
  for (int64_t r = 0; r < c.m; ++r) {
    double sum = 0.0;
    for (int64_t i = 0; i < c.k; ++i) sum += o.x.At({r, i}) * o.x.At({r, i});
    const double rms = std::sqrt(sum / static_cast<double>(c.k) + static_cast<double>(kEps));
    for (int64_t i = 0; i < c.k; ++i) {
      y[static_cast<size_t>(i)] =
          o.x.At({r, i}) / rms * (norm.At({i}) + static_cast<double>(c.offset));
    }
    const auto product = [&](int64_t row) {
      double all = c.biased ? o.bias.At({row}) : 0.0;
      for (int64_t i = 0; i < c.k; ++i) all += y[static_cast<size_t>(i)] * o.weight.At({row, i});
      return all;
    };
    for (int64_t j = 0; j < c.n; ++j) {
      const double opens = c.gate == Gate::kNone ? 1.0 : Open(c.gate, product(j));
      const double all = opens * product(c.gate == Gate::kNone ? j : c.n + j);
      out[static_cast<size_t>(r * c.n + j)] = all + (c.add ? o.out.At({r, j}) : 0.0);
    }
  }
  return out;
}

double ErrorOf(const Tensor& got, const std::vector<double>& want) {
  double error = 0.0;
  const int64_t n = got.dim(1);
  for (int64_t r = 0; r < got.dim(0); ++r) {
    for (int64_t j = 0; j < n; ++j) {
      const double d = got.At({r, j}) - want[static_cast<size_t>(r * n + j)];
      error += d * d;
    }
  }
  return std::sqrt(error);
}

// The CPU's norm, stored, and its product.
Tensor OneAfterTheOther(const Operands& o, const Tensor& norm) {
  Tensor to = o.out;
  LinearArgs a = o.Args(to.view(), o.x.view(), o.weight.view(), o.bias.view());
  a.norm = norm.view();
  a.norm_offset = o.c.offset;
  CheckDone(cpu::Linear(a));
  return to;
}

// Squares of errors over many products, each a part of what the other way has.
struct Errors {
  void Add(const Operands& o, const Tensor& got, const Tensor& norm) {
    const std::vector<double> exact = Exact(o, norm);
    const double both = ErrorOf(OneAfterTheOther(o, norm), exact),
                 ratio = ErrorOf(got, exact) / both;
    CHECK(ratio <= 1.2);  // of some thousand numbers, some of them much larger than others
    sum += ratio * ratio;
    ++count;
    CheckGaps(got);
  }
  double mean() const { return std::sqrt(sum / count); }

  double sum = 0.0;
  int count = 0;
};

TEST_CASE("a wgmma product of half a norm is as near as norm and product in every tile and cut" *
          doctest::skip(!HasWgmma())) {
  std::mt19937_64 rng(52);
  const int shared = CurrentDeviceFacts().value().shared_per_block - kWideScaleBytes;
  constexpr Gate kGates[] = {Gate::kNone, Gate::kSilu, Gate::kGeluTanh};
  Errors errors;
  for (const WideTile& tile : kWideTiles) {
    if (WideMovesRegisters(tile.rows, tile.tokens)) continue;
    for (const int splits : {1, 2, kMaxWideCluster}) {
      const WideChoice choice{tile.rows, tile.tokens, splits, 2, rng() % 2 == 0 ? 2 : 1 << 30};
      REQUIRE(WideSharedBytes(choice) <= shared);
      Case c = RandomCase(rng, 17 + static_cast<int64_t>(rng() % (tile.tokens + 30)));
      c.gate = kGates[rng() % 3];
      c.n = Max<int64_t>(c.n, 96);
      c.k = Max<int64_t>(c.k, 128 * splits - 64);
      CAPTURE(Describe(c));
      CAPTURE(tile.rows);
      CAPTURE(tile.tokens);
      CAPTURE(splits);
      Operands o(c, rng);
      // Rows as large as residuals become; each is a norm of its own.
      for (int64_t r = 0; r < c.m; r += 3) {
        for (int64_t i = 0; i < c.k; ++i) o.x.Set({r, i}, 1e3 * o.x.At({r, i}));
      }
      Half half(c.m, c.k);
      half.weight.Randomize(rng);
      MakeHalf(o.x, c.offset, &half);
      errors.Add(o, Taking(o, &choice, half), half.weight);
    }
  }
  CHECK(errors.mean() <= 1.03);
}

TEST_CASE("a CUDA product of half a norm of 17 to 512 rows is as near as norm and product" *
          doctest::skip(!HasWgmma())) {
  std::mt19937_64 rng(55);
  Errors errors;
  for (int64_t m = 17; m <= 512; m += m <= 300 ? Size(9, 67) : 106) {
    Case c = RandomCase(rng, m);
    c.n = Max<int64_t>(c.n, 96);
    if (rng() % 2 == 0) c.gate = Gate::kSilu;
    CAPTURE(Describe(c));
    const Operands o(c, rng);
    Half half(c.m, c.k);
    half.weight.Randomize(rng);
    MakeHalf(o.x, c.offset, &half);
    errors.Add(o, Taking(o, nullptr, half), half.weight);
  }
  CHECK(errors.mean() <= 1.03);
}

// One block of k, so that nothing else makes the warps wait for each other.
TEST_CASE("no warp scales its sums before all rows have their scales" *
          doctest::skip(!HasWgmma())) {
  std::mt19937_64 rng(56);
  const WideChoice choice{192, 64, 1, 2, 1 << 30};
  Errors errors;
  for (int i = 0; i < 40; ++i) {
    const Operands o({64, 192, 64}, rng);
    Half half(64, 64);
    half.weight.Randomize(rng);
    MakeHalf(o.x, 0.0f, &half);
    errors.Add(o, Taking(o, &choice, half), half.weight);
  }
}

// A layer's second half again and again: each kernel reads what the one in front of it wrote.
TEST_CASE("products with a norm between them repeat bit for bit and read weights ahead" *
          doctest::skip(!HasWgmma())) {
  std::mt19937_64 rng(53);
  const int64_t hidden = Size(1024, 192), inner = Size(3072, 128);
  for (const int64_t m : {int64_t{17}, Size<int64_t>(100, 40), Size<int64_t>(256, 72)}) {
    CAPTURE(m);
    const Operands up({m, inner, hidden, Gate::kSilu}, rng), down({m, hidden, inner}, rng);
    Half half(m, hidden);
    half.weight.Randomize(rng);
    MakeHalf(up.x, 1.0f, &half);
    const OnDevice up_weight(up.weight), down_weight(down.weight), norm(half.weight);
    std::vector<unsigned char> first;
    for (const bool ahead : {false, true, true}) {
      const OnDevice residual(up.x), between(Tensor(kType, {m, inner}));
      const OnDevice scaled(half.scaled), squares(half.squares);
      for (int i = 0; i < 3; ++i) {
        LinearArgs a{between.view(), scaled.view(), up_weight.view(), std::nullopt, ahead};
        a.gate = Gate::kSilu;
        a.squares = squares.view();
        CheckDone(Linear(a, nullptr));
        LinearArgs b{residual.view(), between.view(), down_weight.view(), std::nullopt, ahead};
        b.add = true;
        b.leaves = HalfNorm{norm.view(), 1.0f, scaled.view(), squares.view()};
        CheckDone(Linear(b, nullptr));
      }
      REQUIRE(DeviceFinishes());
      if (first.empty()) first = residual.Bytes();
      CHECK(residual.Bytes() == first);
      Tensor rows = up.x;
      residual.FetchTo(&rows);
      scaled.FetchTo(&half.scaled);
      squares.FetchTo(&half.squares);
      CheckLeft({m, hidden, inner, Gate::kNone, false, true, ahead, 1.0f}, rows, half);
      MakeHalf(up.x, 1.0f, &half);
    }
  }
}

TEST_CASE("a CUDA product refuses a half of a norm that it cannot take or leave" *
          doctest::skip(!HasWgmma())) {
  std::mt19937_64 rng(54);
  const auto refused = [&](int64_t m, auto change, const char* why) {
    const Operands o({m, 64, 64}, rng);
    Half half(m, 64), next(m, 64);
    LinearArgs a = o.Args(o.out.view(), o.x.view(), o.weight.view(), o.bias.view());
    a.squares = half.squares.view();
    a.leaves = HalfNorm{next.weight.view(), 0.0f, next.scaled.view(), next.squares.view()};
    change(&a);
    CHECK(cpu::Refused(Linear(a, nullptr), why));
  };
  const auto nothing = [](LinearArgs*) {};
  refused(16, nothing, "x has 16 rows, from 17 on squares and leaves are taken");
  refused(17, [](LinearArgs* a) { a->norm = a->leaves->weight; }, "both norm and squares");
  refused(17, [](LinearArgs* a) { a->squares->stride[0] -= 1; }, "squares, scaled and their norm");
  refused(17, [](LinearArgs* a) { a->squares->shape[1] = 1; }, "squares");
  refused(17, [](LinearArgs* a) { a->eps = -1.0f; }, "eps is -1");
  refused(17, [](LinearArgs* a) { a->leaves->scaled = a->x; }, "an output shares memory");
  refused(17, [](LinearArgs* a) { a->leaves->squares = *a->squares; }, "an output shares memory");
  refused(17, [](LinearArgs* a) { a->leaves->squares.dtype = kType; }, "squares");
}

}  // namespace
}  // namespace octavo::cuda

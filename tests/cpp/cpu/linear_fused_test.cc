// What a product does on its way: the norm before it, the gate and the sum behind it.
#include <cstring>

#include "cpu/tensor.h"
#include "doctest/doctest.h"

namespace octavo::cpu {
namespace {

struct Case {
  DType dtype;
  int64_t m, n, k;
  bool normed, biased, add;
  Gate gate;
};

// The tensors of a case, rows apart, and the answer of the ops one after another.
struct Operands {
  explicit Operands(const Case& c, std::mt19937_64& rng)
      : c(c),
        rows(c.gate == Gate::kNone ? c.n : 2 * c.n),
        x(c.dtype, {c.m, c.k}, 3),
        weight(c.dtype, {rows, c.k}, 1),
        bias(c.dtype, {rows}),
        norm(c.dtype, {c.k}),
        out(c.dtype, {c.m, c.n}, 2) {
    for (Tensor* t : {&x, &weight, &bias, &norm, &out}) t->Randomize(rng);
  }

  LinearArgs Args(const Tensor& to) const {
    LinearArgs a{to.view(), x.view(), weight.view(), std::nullopt};
    if (c.biased) a.bias = bias.view();
    if (c.normed) a.norm = norm.view();
    a.eps = 1e-3f;
    a.norm_offset = 0.5f;
    a.gate = c.gate;
    a.add = c.add;
    return a;
  }

  Tensor OneAfterAnother() const {
    Tensor normed(c.dtype, {c.m, c.k}), product(c.dtype, {c.m, rows}), value(c.dtype, {c.m, c.n});
    if (c.normed) {
      REQUIRE(RmsNorm({normed.view(), x.view(), norm.view(), 1e-3f, 0.5f}).ok());
    }
    LinearArgs plain{product.view(), c.normed ? normed.view() : x.view(), weight.view(),
                     std::nullopt};
    if (c.biased) plain.bias = bias.view();
    REQUIRE(Linear(plain).ok());
    if (c.gate == Gate::kSilu) REQUIRE(SiluMul({value.view(), product.view()}).ok());
    if (c.gate == Gate::kGeluTanh) REQUIRE(GeluTanhMul({value.view(), product.view()}).ok());
    if (c.gate == Gate::kNone) value = product;
    Tensor sum = out, ignored(c.dtype, {c.m, c.n}), ones(c.dtype, {c.n});
    if (!c.add) return value;
    REQUIRE(AddRmsNorm({ignored.view(), value.view(), sum.view(), ones.view()}).ok());
    return sum;
  }

  Case c;
  int64_t rows;
  Tensor x, weight, bias, norm, out;
};

void CheckBits(const Case& c, std::mt19937_64& rng) {
  CAPTURE(static_cast<int>(c.dtype));
  CAPTURE(c.m);
  CAPTURE(c.n);
  CAPTURE(c.k);
  CAPTURE(c.normed);
  CAPTURE(c.add);
  CAPTURE(static_cast<int>(c.gate));
  const Operands o(c, rng);
  const Tensor want = o.OneAfterAnother();
  Tensor got = o.out;
  REQUIRE(Linear(o.Args(got)).ok());
  for (int64_t i = 0; i < c.m; ++i) {
    for (int64_t j = 0; j < c.n; ++j) REQUIRE(got.At({i, j}) == want.At({i, j}));
    CHECK(std::isnan(got.Get(got.Offset({i, c.n}))));
  }
}

TEST_CASE("a fused product has the bits of the ops that it stands for") {
  std::mt19937_64 rng(21);
  ForEachIsa([&] {
    for (const DType dtype : kFloatTypes) {
      for (const Gate gate : {Gate::kNone, Gate::kSilu, Gate::kGeluTanh}) {
        for (int flags = 0; flags < 8; ++flags) {
          const bool normed = (flags & 1) != 0, biased = (flags & 2) != 0, add = (flags & 4) != 0;
          for (const int64_t m : {1, 2, 7}) {
            CheckBits({dtype, m, 21, 40, normed, biased, add, gate}, rng);
            CheckBits({dtype, m, 4, 37, normed, biased, add, gate}, rng);
          }
        }
        // Several tasks, the last of them short.
        CheckBits({dtype, 3, 1001, 300, true, true, true, gate}, rng);
      }
    }
  });
}

TEST_CASE("a row of a fused product is the same bits for any number of rows and threads") {
  std::mt19937_64 rng(22);
  for (const DType dtype : kFloatTypes) {
    const Operands o({dtype, 5, 600, 256, true, true, true, Gate::kSilu}, rng);
    Tensor together = o.out, threaded = o.out, alone = o.out;
    SetNumThreads(1);
    REQUIRE(Linear(o.Args(together)).ok());
    SetNumThreads(4);
    REQUIRE(Linear(o.Args(threaded)).ok());
    SetNumThreads(0);
    CHECK(threaded.bytes() == together.bytes());
    for (int64_t i = 0; i < 5; ++i) {
      LinearArgs row = o.Args(alone);
      for (TensorView* v : {&row.out, &row.x}) {
        v->data = static_cast<char*>(v->data) + i * v->stride[0] * DTypeSize(dtype);
        v->shape[0] = 1;
      }
      REQUIRE(Linear(row).ok());
    }
    CHECK(alone.bytes() == together.bytes());
  }
}

TEST_CASE("a fused product of no columns adds its bias, and of no rows nothing") {
  Tensor x(DType::kF32, {2, 0}), weight(DType::kF32, {6, 0}), out(DType::kF32, {2, 3});
  Tensor bias(DType::kF32, {6});
  for (int64_t j = 0; j < 6; ++j) bias.Set({j}, 2.0);
  for (int64_t i = 0; i < 2; ++i) {
    for (int64_t j = 0; j < 3; ++j) out.Set({i, j}, 1.0);
  }
  LinearArgs a{out.view(), x.view(), weight.view(), bias.view()};
  a.gate = Gate::kSilu;
  a.add = true;
  REQUIRE(Linear(a).ok());
  CHECK(out.At({1, 2}) == doctest::Approx(1.0 + 4.0 / (1.0 + std::exp(-2.0))));
  Tensor none(DType::kF32, {0, 4}), some(DType::kF32, {6, 4}), empty(DType::kF32, {0, 3});
  a.out = empty.view();
  a.x = none.view();
  a.weight = some.view();
  CHECK(Linear(a).ok());
}

TEST_CASE("a fused product names what is wrong with its tensors") {
  Tensor x(DType::kF32, {2, 8}), weight(DType::kF32, {6, 8}), odd(DType::kF32, {5, 8});
  Tensor out(DType::kF32, {2, 6}), half(DType::kF32, {2, 3}), norm(DType::kF32, {8});
  Tensor narrow(DType::kF32, {7}), other(DType::kBF16, {8}), nothing(DType::kF32, {2, 0});
  const LinearArgs plain{out.view(), x.view(), weight.view(), std::nullopt};
  LinearArgs a = plain;
  a.norm = narrow.view();
  CHECK(Refused(Linear(a), "norm"));
  a.norm = other.view();
  CHECK(Refused(Linear(a), "norm"));
  a.norm = norm.view();
  a.eps = -1.0f;
  CHECK(Refused(Linear(a), "eps is -1"));
  a = plain;
  a.gate = Gate::kSilu;
  CHECK(Refused(Linear(a), "out"));
  a.out = half.view();
  CHECK(Linear(a).ok());
  a.weight = odd.view();
  CHECK(Refused(Linear(a), "weight has 5 rows"));
}

TEST_CASE("half of a norm is checked as on CUDA, and refused by the CPU") {
  CHECK(SquaresOf(64) == 4);
  CHECK(SquaresOf(257) == 8);
  Tensor x(DType::kBF16, {2, 8}), weight(DType::kBF16, {6, 8}), out(DType::kBF16, {2, 6});
  Tensor norm(DType::kBF16, {6}), wide(DType::kBF16, {8}), scaled(DType::kBF16, {2, 6});
  Tensor squares(DType::kF32, {2, 4}), left(DType::kF32, {2, 4}), narrow(DType::kF32, {2, 1});
  LinearArgs plain{out.view(), x.view(), weight.view(), std::nullopt};
  plain.squares = squares.view();
  plain.leaves = HalfNorm{norm.view(), 0.0f, scaled.view(), left.view()};
  const auto refused = [&](auto change, const char* why) {
    LinearArgs a = plain;
    change(&a);
    CHECK(Refused(Linear(a), why));
  };
  refused([](LinearArgs*) {}, "of products on CUDA");
  refused([&](LinearArgs* a) { a->norm = wide.view(); }, "both norm and squares");
  refused([&](LinearArgs* a) { a->squares = narrow.view(); }, "squares");
  refused([](LinearArgs* a) { a->eps = -1.0f; }, "eps is -1");
  refused([&](LinearArgs* a) { a->leaves->weight = wide.view(); }, "leaves.weight");
  refused([&](LinearArgs* a) { a->leaves->scaled = out.view(); }, "an output shares memory");
  refused([&](LinearArgs* a) { a->leaves->squares = squares.view(); }, "an output shares memory");
  refused([&](LinearArgs* a) { a->leaves->squares = narrow.view(); }, "squares");
  Tensor opened(DType::kBF16, {2, 3});
  refused(
      [&](LinearArgs* a) {
        a->out = opened.view();
        a->gate = Gate::kSilu;
      },
      "leaves is given with a gate");
  Tensor hx(DType::kF16, {2, 8}), hw(DType::kF16, {6, 8}), ho(DType::kF16, {2, 6});
  LinearArgs half{ho.view(), hx.view(), hw.view(), std::nullopt};
  half.squares = squares.view();
  CHECK(Refused(Linear(half), "x is float16"));
}

}  // namespace
}  // namespace octavo::cpu

// The ops of recurrent layers against float64: rows of any length, states in scattered blocks.
#include <cmath>

#include "cpu/tensor.h"
#include "doctest/doctest.h"
#include "octavo/ops_state.h"

namespace octavo::cpu {
namespace {

double Silu(double x) { return x / (1 + std::exp(-x)); }

std::vector<int32_t> Starts(const std::vector<int32_t>& sizes) {
  std::vector<int32_t> starts = {0};
  for (int32_t size : sizes) starts.push_back(starts.back() + size);
  return starts;
}

// A step of five rows: prefill from nothing, decode in place, a chunk from another's snapshot, a
// row without tokens and one that is skipped.
struct Rows {
  std::vector<int32_t> sizes = {7, 1, 3, 0, 2};
  std::vector<int32_t> starts = Starts(sizes);
  std::vector<int32_t> source = {-1, 4, 2, 1, 3};
  std::vector<int32_t> target = {0, 4, 5, 6, -1};
  int64_t tokens = 13, blocks = 7;
};

struct Conv {
  Conv(DType dtype, int64_t n, int64_t channels, int64_t taps, int64_t blocks)
      : out(dtype, {n, channels}, 3),
        x(dtype, {n, channels}, 5),
        weight(dtype, {channels, taps}, 1),
        bias(dtype, {channels}),
        state(dtype, {blocks, taps - 1, channels}, 2) {}

  void Randomize(std::mt19937_64& rng) {
    for (Tensor* t : {&x, &weight, &bias, &state}) t->Randomize(rng);
  }
  CausalConv1dArgs Args(Rows& rows, bool with_bias = true) {
    CausalConv1dArgs a{out.view(),          x.view(),           weight.view(),
                       std::nullopt,        state.view(),       Column(rows.starts),
                       Column(rows.source), Column(rows.target)};
    if (with_bias) a.bias = bias.view();
    return a;
  }

  Tensor out, x, weight, bias, state;
};

TEST_CASE("causal_conv1d equals float64 for any taps, width, dtype and source of its past") {
  std::mt19937_64 rng(1);
  ForEachIsa([&] {
    for (const DType dtype : kFloatTypes) {
      for (const auto& [channels, taps] :
           {std::pair<int64_t, int64_t>{1, 4}, {48, 4}, {77, 4}, {200, 2}, {33, 3}, {16, 8}}) {
        CAPTURE(channels);
        CAPTURE(taps);
        Rows rows;
        Conv t(dtype, rows.tokens, channels, taps, rows.blocks);
        t.Randomize(rng);
        const Tensor before = t.state;
        const bool with_bias = channels % 2 == 0;
        REQUIRE(CausalConv1d(t.Args(rows, with_bias)).ok());
        for (size_t r = 0; r < rows.sizes.size(); ++r) {
          const int32_t first = rows.starts[r], size = rows.sizes[r], from = rows.source[r];
          for (int64_t c = 0; c < channels; ++c) {
            // Input i of the row; negative: of its past.
            const auto input = [&](int64_t i) {
              if (i >= 0) return t.x.At({first + i, c});
              return from < 0 ? 0.0 : before.At({from, taps - 1 + i, c});
            };
            for (int32_t i = 0; i < size; ++i) {
              double sum = with_bias ? t.bias.At({c}) : 0.0;
              for (int64_t k = 0; k < taps; ++k) {
                sum += t.weight.At({c, k}) * input(i - (taps - 1) + k);
              }
              const double got = t.out.At({first + i, c});
              if (rows.target[r] < 0) {
                REQUIRE(std::isnan(got));
              } else {
                REQUIRE(Close(dtype, got, Silu(sum), 8.0));
              }
            }
            if (rows.target[r] < 0 || size == 0) continue;
            for (int64_t k = 0; k < taps - 1; ++k) {
              REQUIRE(t.state.At({rows.target[r], k, c}) == input(size - (taps - 1) + k));
            }
          }
        }
        for (const int64_t untouched : {1, 2, 3, 6}) {
          REQUIRE(t.state.At({untouched, 0, channels - 1}) ==
                  before.At({untouched, 0, channels - 1}));
        }
      }
    }
  });
}

struct ScanCase {
  int64_t heads, groups, dim, size;
};

struct ScanTensors {
  ScanTensors(DType dtype, int64_t n, const ScanCase& s, int64_t blocks)
      : out(dtype, {n, s.heads, s.dim}, 1),
        x(dtype, {n, s.heads, s.dim}, 4),
        dt(dtype, {n, s.heads}, 3),
        b(dtype, {n, s.groups, s.size}, 2),
        c(dtype, {n, s.groups, s.size}, 6),
        a_log(dtype, {s.heads}),
        dt_bias(dtype, {s.heads}),
        skip(dtype, {s.heads}),
        state(DType::kF32, {blocks, s.heads, s.size, s.dim}) {}

  void Randomize(std::mt19937_64& rng) {
    for (Tensor* t : {&x, &dt, &b, &c, &a_log, &dt_bias, &skip, &state}) t->Randomize(rng);
  }
  SsmScanArgs Args(Rows& rows) {
    return {out.view(),          x.view(),           dt.view(),   b.view(),     c.view(),
            a_log.view(),        dt_bias.view(),     skip.view(), state.view(), Column(rows.starts),
            Column(rows.source), Column(rows.target)};
  }

  Tensor out, x, dt, b, c, a_log, dt_bias, skip, state;
};

// The recurrence of one head of one row as the header states it, in float64.
void CheckHead(const ScanTensors& t, const Tensor& before, const Rows& rows, size_t row, int64_t h,
               const ScanCase& s, DType dtype) {
  const int64_t g = h / (s.heads / s.groups);
  std::vector<double> state(size_t(s.size * s.dim));
  const auto at = [&](int64_t i, int64_t p) -> double& { return state[size_t(i * s.dim + p)]; };
  for (int64_t i = 0; i < s.size; ++i) {
    for (int64_t p = 0; p < s.dim; ++p) {
      at(i, p) = rows.source[row] < 0 ? 0.0 : before.At({rows.source[row], h, i, p});
    }
  }
  for (int64_t n = rows.starts[row]; n < rows.starts[row + 1]; ++n) {
    const double step = std::log1p(std::exp(t.dt.At({n, h}) + t.dt_bias.At({h})));
    const double decay = std::exp(-std::exp(t.a_log.At({h})) * step);
    for (int64_t p = 0; p < s.dim; ++p) {
      double sum = t.skip.At({h}) * t.x.At({n, h, p}), magnitude = 1.0;
      for (int64_t i = 0; i < s.size; ++i) {
        at(i, p) = at(i, p) * decay + step * t.b.At({n, g, i}) * t.x.At({n, h, p});
        sum += at(i, p) * t.c.At({n, g, i});
        magnitude += std::fabs(at(i, p) * t.c.At({n, g, i}));
      }
      REQUIRE(Close(dtype, t.out.At({n, h, p}), sum, magnitude));
    }
  }
  for (int64_t i = 0; i < s.size; ++i) {
    for (int64_t p = 0; p < s.dim; ++p) {
      const double got = t.state.At({rows.target[row], h, i, p});
      REQUIRE(Close(DType::kF32, got, at(i, p), 1.0 + std::fabs(at(i, p))));
    }
  }
}

TEST_CASE("ssm_scan equals float64 for any shape, dtype and source of its state") {
  std::mt19937_64 rng(2);
  ForEachIsa([&] {
    for (const DType dtype : kFloatTypes) {
      for (const ScanCase& s :
           {ScanCase{4, 1, 64, 16}, {6, 2, 24, 5}, {3, 3, 7, 40}, {2, 1, 80, 1}}) {
        CAPTURE(s.dim);
        CAPTURE(s.size);
        Rows rows;
        ScanTensors t(dtype, rows.tokens, s, rows.blocks);
        t.Randomize(rng);
        const Tensor before = t.state;
        REQUIRE(SsmScan(t.Args(rows)).ok());
        for (const size_t row : {0, 1, 2}) {
          for (int64_t h = 0; h < s.heads; ++h) CheckHead(t, before, rows, row, h, s, dtype);
        }
        for (const int64_t untouched : {1, 2, 3, 6}) {
          REQUIRE(t.state.At({untouched, 0, 0, 0}) == before.At({untouched, 0, 0, 0}));
        }
        REQUIRE(std::isnan(t.out.At({12, 0, 0})));
      }
    }
  });
}

TEST_CASE("a step size beyond what 1 + e^x can tell is the line itself") {
  Rows rows;
  rows.starts = {0, 1, 1, 1, 1, 1};
  const ScanCase s{1, 1, 4, 2};
  ScanTensors t(DType::kF32, 1, s, rows.blocks);
  std::mt19937_64 rng(3);
  t.Randomize(rng);
  t.dt.Set({0, 0}, 300.0);
  const Tensor before = t.state;
  REQUIRE(SsmScan(t.Args(rows)).ok());
  CHECK(std::isfinite(t.out.At({0, 0, 0})));
  const double want = (300.0 + t.dt_bias.At({0})) * t.b.At({0, 0, 1}) * t.x.At({0, 0, 3});
  CHECK(Close(DType::kF32, t.state.At({0, 0, 1, 3}), want, std::fabs(want)));
}

TEST_CASE("a sequence leaves the same bits in any chunks, and in any company") {
  std::mt19937_64 rng(4);
  constexpr int64_t kTokens = 40, kChannels = 96;
  const ScanCase s{8, 2, 64, 32};
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    Conv conv(dtype, kTokens, kChannels, 4, 3);
    ScanTensors scan(dtype, kTokens, s, 3);
    conv.Randomize(rng);
    scan.Randomize(rng);
    Rows whole;
    whole.starts = {0, int32_t(kTokens)};
    whole.source = {-1};
    whole.target = {2};
    REQUIRE(CausalConv1d(conv.Args(whole)).ok());
    REQUIRE(SsmScan(scan.Args(whole)).ok());
    const Tensor conv_out = conv.out, scan_out = scan.out;
    const Tensor conv_state = conv.state, scan_state = scan.state;
    int32_t first = 0, block = -1;
    for (const int32_t size : {1, 2, 16, 1, 20}) {
      // The chunk as the second of two rows, whose first starts the sequence anew each time.
      Rows rows;
      rows.starts = {0, first, first + size};
      rows.source = {-1, block};
      rows.target = {0, block = block < 0 ? 1 : 2};
      REQUIRE(CausalConv1d(conv.Args(rows)).ok());
      REQUIRE(SsmScan(scan.Args(rows)).ok());
      first += size;
    }
    CHECK(conv.out.bytes() == conv_out.bytes());
    CHECK(scan.out.bytes() == scan_out.bytes());
    for (int64_t h = 0; h < s.heads; ++h) {
      REQUIRE(scan.state.At({2, h, 31, 63}) == scan_state.At({2, h, 31, 63}));
    }
    for (int64_t c = 0; c < kChannels; ++c) {
      REQUIRE(conv.state.At({2, 0, c}) == conv_state.At({2, 0, c}));
    }
  }
}

TEST_CASE("gated_rms_norm equals float64 in groups of any width, also over its input") {
  std::mt19937_64 rng(5);
  ForEachIsa([&] {
    for (const DType dtype : kFloatTypes) {
      for (const auto& [width, groups] :
           {std::pair<int64_t, int64_t>{1, 1}, {64, 1}, {96, 4}, {231, 3}}) {
        Tensor x(dtype, {4, width}, 2), gate(dtype, {4, width}, 7), weight(dtype, {width});
        x.Randomize(rng);
        gate.Randomize(rng, 3.0);
        weight.Randomize(rng);
        const Tensor before = x;
        REQUIRE(GatedRmsNorm({x.view(), x.view(), gate.view(), weight.view(), groups, 1e-5f}).ok());
        for (int64_t i = 0; i < 4; ++i) {
          for (int64_t j = 0; j < width; ++j) {
            const int64_t n = width / groups, first = j / n * n;
            double squares = 0.0;
            const auto y = [&](int64_t c) { return before.At({i, c}) * Silu(gate.At({i, c})); };
            for (int64_t c = first; c < first + n; ++c) squares += y(c) * y(c);
            const double want = y(j) / std::sqrt(squares / double(n) + 1e-5) * weight.At({j});
            REQUIRE(Close(dtype, x.At({i, j}), want, 1.0 + std::fabs(want)));
          }
        }
      }
    }
  });
}

TEST_CASE("state_mapping reads the entry before a row and writes the entry of its last token") {
  // Blocks of 4 tokens. A fresh prompt, a decode inside a block, one that crosses into the next, a
  // chunk over entries that stay null, and a row without tokens.
  std::vector<int32_t> starts = {0, 6, 7, 8, 16, 16}, slot = {1, 0, 3, 2, 0};
  std::vector<int32_t> length = {6, 7, 9, 12, 0}, source(5, 99), target(5, 99);
  std::vector<int32_t> table = {7, 8, 0, 0, 9, 3, 0, 0, 5, 0, 6, 0, 0, 2, 4, 0};
  StateMappingArgs a{Column(source),
                     Column(target),
                     Column(starts),
                     Column(slot),
                     Column(length),
                     TensorView::Dense(table.data(), DType::kI32, {4, 4}),
                     4};
  REQUIRE(StateMapping(a).ok());
  CHECK(source == std::vector<int32_t>{-1, 8, 2, 5, -1});
  CHECK(target == std::vector<int32_t>{3, 8, 4, 6, -1});
  length[3] = 16;
  CHECK(Refused(StateMapping(a), "block_table holds no block at entry 1 of row 3"));
  length[3] = 17;
  CHECK(Refused(StateMapping(a), "seq_len[3] is 17, need the row's 8 tokens to 16"));
  slot[3] = 4;
  CHECK(Refused(StateMapping(a), "row_slot[3] is 4, need 0 to 3"));
  a.block_size = 0;
  CHECK(Refused(StateMapping(a), "block_size is 0"));
  a.block_size = INT64_MAX;
  CHECK(Refused(StateMapping(a), "block_size is 9223372036854775807"));
}

TEST_CASE("the ops of recurrent layers refuse wrong shapes, dtypes and blocks before they write") {
  Rows rows;
  Conv conv(DType::kF32, rows.tokens, 8, 4, rows.blocks);
  const ScanCase s{4, 2, 8, 4};
  ScanTensors scan(DType::kF32, rows.tokens, s, rows.blocks);
  const std::vector<unsigned char> untouched = scan.state.bytes();

  CausalConv1dArgs c = conv.Args(rows);
  rows.source[2] = 7;
  CHECK(Refused(CausalConv1d(c), "source[2] is 7, need less than 7"));
  CHECK(Refused(SsmScan(scan.Args(rows)), "source[2] is 7, need less than 7"));
  rows.source[2] = 2;
  rows.target[0] = 7;
  CHECK(Refused(SsmScan(scan.Args(rows)), "target[0] is 7"));
  rows.target[0] = 0;
  rows.starts[5] = 14;
  CHECK(Refused(CausalConv1d(c), "query_start must start at 0, never fall and end at 13"));
  rows.starts[5] = 13;
  Tensor half(DType::kF16, {rows.blocks, 3, 8}), nine(DType::kF32, {8, 9});
  c.state = half.view();
  CHECK(Refused(CausalConv1d(c), "state has dtype float16"));
  c.state = conv.state.view();
  c.weight = nine.view();
  CHECK(Refused(CausalConv1d(c), "weight has 9 taps, need 2 to 8"));

  SsmScanArgs a = scan.Args(rows);
  Tensor three(DType::kF32, {rows.tokens, 3, 4}), sixteen(DType::kF16, {rows.blocks, 4, 4, 8});
  a.b = a.c = three.view();
  CHECK(Refused(SsmScan(a), "b has 3 groups, need a divisor of the 4 heads"));
  a = scan.Args(rows);
  a.state = sixteen.view();
  CHECK(Refused(SsmScan(a), "state has dtype float16, need float32"));
  Tensor gaps(DType::kF32, {rows.blocks, 4, 4, 8}, 1);
  a.state = gaps.view();
  CHECK(Refused(SsmScan(a), "state has stride 9 between values of one head, need 8"));
  CHECK(scan.state.bytes() == untouched);

  Tensor x(DType::kF32, {2, 8}), weight(DType::kF32, {8});
  CHECK(Refused(GatedRmsNorm({x.view(), x.view(), x.view(), weight.view(), 3, 1e-6f}),
                "groups is 3, need a divisor of the 8 columns"));
}

}  // namespace
}  // namespace octavo::cpu

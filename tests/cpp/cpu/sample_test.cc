// The sampler and logprobs: order of the steps, sets that are kept, draws, refusals.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "base/uniform.h"
#include "cpu/tensor.h"
#include "cpu/top.h"
#include "doctest/doctest.h"

namespace octavo::cpu {
namespace {

// The columns of `rows` samples, neutral until a test changes them.
struct Batch {
  int64_t rows, vocab;
  std::vector<float> logits, temperature, top_p, min_p, presence, frequency, repetition, bias_value;
  std::vector<int32_t> token, top_k, bias_start, bias_token, history_len, prompt_len;
  std::vector<uint64_t> seed, history, mask;
  std::vector<int64_t> index;

  Batch(int64_t r, int64_t v) : rows(r), vocab(v) {
    const auto n = static_cast<size_t>(r);
    logits.assign(n * static_cast<size_t>(v), 0.0f);
    temperature.assign(n, 1.0f);
    top_p.assign(n, 1.0f);
    for (auto* zeros : {&min_p, &presence, &frequency}) zeros->assign(n, 0.0f);
    repetition.assign(n, 1.0f);
    for (auto* zeros : {&token, &top_k, &history_len, &prompt_len}) zeros->assign(n, 0);
    for (auto* zeros : {&seed, &history, &mask}) zeros->assign(n, 0);
    bias_start.assign(n + 1, 0);
    index.assign(n, 0);
    std::iota(seed.begin(), seed.end(), 0);
  }

  SampleArgs Args(std::vector<float>& x) {
    return {Column(token),       TensorView::Dense(x.data(), DType::kF32, {rows, vocab}),
            Column(temperature), Column(top_k),
            Column(top_p),       Column(min_p),
            Column(presence),    Column(frequency),
            Column(repetition),  Column(seed),
            Column(index),       Column(bias_start),
            Column(bias_token),  Column(bias_value),
            Column(history),     Column(history_len),
            Column(prompt_len),  Column(mask)};
  }

  std::vector<int32_t> Run() {
    std::vector<float> x = logits;
    const Status s = Sample(Args(x));
    INFO(s.message());
    REQUIRE(s.ok());
    return token;
  }

  // Every row a copy of `row`.
  void FillRows(const std::vector<float>& row) {
    for (int64_t r = 0; r < rows; ++r) {
      std::copy(row.begin(), row.end(), logits.begin() + r * vocab);
    }
  }
};

std::vector<float> RandomLogits(int64_t n, std::mt19937_64& rng, double scale = 2.0) {
  std::normal_distribution<double> normal(0.0, scale);
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = static_cast<float>(normal(rng));
  return x;
}

// Probabilities in float64 after temperature, min_p, top_k and top_p.
std::vector<double> Probabilities(const std::vector<float>& x, double temperature, int64_t k,
                                  double p, double min_p) {
  std::vector<size_t> order(x.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return x[a] > x[b]; });
  std::vector<double> w(x.size(), 0.0);
  double total = 0.0;
  int64_t kept = 0;
  const double top = double(x[order[0]]);
  for (size_t i : order) {
    const double weight = std::exp((double(x[i]) - top) / temperature);
    if (weight < min_p || (k > 0 && kept == k)) break;
    w[i] = weight;
    total += weight;
    ++kept;
  }
  double sum = 0.0;
  for (size_t i : order) {
    if (sum >= p * total) w[i] = 0.0;
    sum += w[i];
  }
  total = std::accumulate(w.begin(), w.end(), 0.0);
  for (double& v : w) v /= total;
  return w;
}

double ChiSquare(const std::vector<int32_t>& tokens, const std::vector<double>& p, int* freedom) {
  std::vector<double> count(p.size(), 0.0);
  for (int32_t t : tokens) count[size_t(t)] += 1.0;
  double chi = 0.0, rest = 0.0, rest_expected = 0.0;
  *freedom = -1;
  for (size_t i = 0; i < p.size(); ++i) {
    const double expected = p[i] * double(tokens.size());
    if (p[i] == 0.0) REQUIRE(count[i] == 0.0);
    if (expected < 8.0) {
      rest += count[i];
      rest_expected += expected;
      continue;
    }
    chi += (count[i] - expected) * (count[i] - expected) / expected;
    ++*freedom;
  }
  if (rest_expected > 8.0) {
    chi += (rest - rest_expected) * (rest - rest_expected) / rest_expected;
    ++*freedom;
  }
  return chi;
}

TEST_CASE("draws follow the distribution that the parameters leave") {
  struct Setting {
    int64_t vocab;
    float temperature;
    int32_t top_k;
    float top_p, min_p;
  };
  std::mt19937_64 rng(1);
  for (const Setting& s :
       {Setting{50, 1.0f, 0, 1.0f, 0.0f}, Setting{50, 0.6f, 7, 1.0f, 0.0f},
        Setting{50, 1.5f, 0, 0.8f, 0.0f}, Setting{50, 1.0f, 0, 1.0f, 0.1f},
        Setting{60, 1.2f, 20, 0.7f, 0.02f}, Setting{2500, 2.0f, 0, 0.9f, 0.0f},
        Setting{2500, 1.0f, 1100, 0.95f, 0.0f}, Setting{1, 1.0f, 3, 0.5f, 0.5f}}) {
    CAPTURE(s.vocab);
    CAPTURE(s.top_k);
    const std::vector<float> row = RandomLogits(s.vocab, rng);
    const auto p = Probabilities(row, s.temperature, s.top_k, s.top_p, s.min_p);
    ForEachIsa([&] {
      Batch b(s.vocab > 1000 ? 4000 : 20000, s.vocab);
      b.FillRows(row);
      b.temperature.assign(size_t(b.rows), s.temperature);
      b.top_k.assign(size_t(b.rows), s.top_k);
      b.top_p.assign(size_t(b.rows), s.top_p);
      b.min_p.assign(size_t(b.rows), s.min_p);
      int freedom;
      const double chi = ChiSquare(b.Run(), p, &freedom);
      // Four standard deviations of the chi-square distribution: seeds are fixed, this cannot
      // flake.
      CHECK(chi < freedom + 4 * std::sqrt(2.0 * (freedom + 1)));
    });
  }
}

TEST_CASE("a seed and index give the same token alone and inside a batch of 64") {
  std::mt19937_64 rng(2);
  Batch all(64, 3000);
  for (int64_t r = 0; r < 64; ++r) {
    const auto row = RandomLogits(3000, rng);
    std::copy(row.begin(), row.end(), all.logits.begin() + r * 3000);
    all.seed[size_t(r)] = rng();
    all.index[size_t(r)] = int64_t(rng() % 1000);
    all.top_k[size_t(r)] = r % 3 == 0 ? 40 : 0;
    all.top_p[size_t(r)] = r % 2 == 0 ? 0.9f : 1.0f;
  }
  const auto batched = all.Run();
  for (size_t r = 0; r < 64; ++r) {
    Batch one(1, 3000);
    std::copy_n(all.logits.begin() + int64_t(r) * 3000, 3000, one.logits.begin());
    one.seed[0] = all.seed[r];
    one.index[0] = all.index[r];
    one.top_k[0] = all.top_k[r];
    one.top_p[0] = all.top_p[r];
    CHECK(one.Run()[0] == batched[r]);
  }
}

TEST_CASE("temperature 0 takes the largest logit, the lowest id among equals") {
  Batch b(1, 100);
  b.temperature[0] = 0.0f;
  b.logits[70] = b.logits[31] = 5.0f;
  CHECK(b.Run()[0] == 31);
  std::vector<float> x = b.logits;
  ForEachIsa([&] {
    REQUIRE(Argmax({Column(b.token), TensorView::Dense(x.data(), DType::kF32, {1, 100})}).ok());
    CHECK(b.token[0] == 31);
  });
}

TEST_CASE("among equal logits top_k and top_p keep the lower ids") {
  for (const int64_t vocab : {40, 5000}) {
    Batch b(300, vocab);
    b.top_k.assign(300, 3);
    std::set<int32_t> seen;
    for (int32_t t : b.Run()) seen.insert(t);
    CHECK(seen == std::set<int32_t>{0, 1, 2});
    b.top_k.assign(300, 0);
    b.top_p.assign(300, 10.0f / static_cast<float>(vocab) - 1e-6f);
    seen.clear();
    for (int32_t t : b.Run()) seen.insert(t);
    CHECK(*seen.rbegin() == 9);
  }
}

TEST_CASE("penalties act once per token: repetition on prompt and output, the others on output") {
  Batch b(1, 8);
  b.logits = {4.0f, -1.0f, 3.0f, 2.9f, 0.0f, 0.0f, 0.0f, 0.0f};
  b.temperature[0] = 0.0f;
  std::vector<int32_t> history = {0, 0, 1, 99, -1, 2, 2, 3};  // two ids are placeholders
  b.history[0] = reinterpret_cast<uint64_t>(history.data());
  b.history_len[0] = 8;
  b.prompt_len[0] = 5;
  const auto penalized = [&](float repetition, float frequency, float presence) {
    b.repetition[0] = repetition;
    b.frequency[0] = frequency;
    b.presence[0] = presence;
    std::vector<float> x = b.logits;
    REQUIRE(Sample(b.Args(x)).ok());
    return x;
  };
  auto x = penalized(2.0f, 0.0f, 0.0f);
  CHECK(x[0] == 2.0f);
  CHECK(x[1] == -2.0f);
  CHECK(x[2] == 1.5f);
  x = penalized(1.0f, 0.5f, 0.0f);
  CHECK(x[0] == 4.0f);
  CHECK(x[2] == 2.0f);
  CHECK(x[3] == doctest::Approx(2.4f));
  x = penalized(1.0f, 0.0f, 0.25f);
  CHECK(x[1] == -1.0f);
  CHECK(x[2] == 2.75f);
  CHECK(b.token[0] == 0);
}

TEST_CASE("masks and bias come first, and a ban holds against everything") {
  Batch b(1, 70);
  b.logits[3] = 9.0f;
  b.logits[65] = 8.0f;
  b.temperature[0] = 0.0f;
  std::vector<uint32_t> words = {~0u & ~(1u << 3), ~0u, ~0u};
  b.mask[0] = reinterpret_cast<uint64_t>(words.data());
  ForEachIsa([&] { CHECK(b.Run()[0] == 65); });
  b.bias_token = {65, 40, 3};
  b.bias_value = {-INFINITY, 3.0f, 100.0f};
  b.bias_start = {0, 3};
  CHECK(b.Run()[0] == 40);  // 3 is masked whatever its bias
  words = {0, 0, 0};
  CHECK(b.Run()[0] == -1);
  words[1] = 1u << 8;
  b.temperature[0] = 5.0f;
  CHECK(b.Run()[0] == 40);
  b.logits[3] = INFINITY;  // banned by mask: no infinity and no NaN is left
  CHECK(b.Run()[0] == 40);
}

TEST_CASE("a row that cannot be sampled gets -1 and its neighbours their tokens") {
  Batch b(7, 33);
  for (int64_t r = 0; r < 7; ++r) b.logits[size_t(r * 33 + 5)] = 100.0f;
  b.logits[33 + 32] = NAN;
  b.temperature[2] = NAN;
  b.repetition[3] = 0.0f;
  b.min_p[4] = 1.5f;
  std::fill_n(b.logits.begin() + 5 * 33, 33, -INFINITY);
  const std::vector<int32_t> got = b.Run();
  for (size_t r = 0; r < 7; ++r) {
    CAPTURE(r);
    CHECK(got[r] == (r == 0 || r == 6 ? 5 : -1));
  }
}

TEST_CASE("the sampler refuses bad bias and histories") {
  Batch b(2, 10);
  std::vector<float> x = b.logits;
  b.bias_token = {10};
  b.bias_value = {1.0f};
  b.bias_start = {0, 1, 1};
  CHECK(Refused(Sample(b.Args(x)), "bias_token[0] is 10"));
  b.bias_token = {1};
  b.bias_start = {0, 1, 2};
  CHECK(Refused(Sample(b.Args(x)), "bias_start"));
  b.bias_start = {0, 1, 1};
  b.history_len[1] = 3;
  CHECK(Refused(Sample(b.Args(x)), "history[1] is 0"));
  b.history_len[1] = 0;
  b.prompt_len[1] = 1;
  CHECK(Refused(Sample(b.Args(x)), "row 1 has history_len 0 and prompt_len 1"));
}

TEST_CASE("SelectTop and FindCut agree with a full sort") {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    std::mt19937_64 rng(seed);
    const int64_t n = int64_t(rng() % 3000) + 1;
    std::vector<float> x(static_cast<size_t>(n));
    const bool coarse = seed % 2 == 0;  // many equal values
    for (float& v : x) v = coarse ? float(rng() % 20) / 19.0f : float(rng() % (1 << 24)) * 0x1p-24f;
    x[rng() % x.size()] = 1.0f;
    std::vector<int32_t> order(x.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return x[size_t(a)] > x[size_t(b)]; });
    ForEachIsa([&] {
      const int64_t k = int64_t(rng() % uint64_t(n)) + 1;
      std::vector<int32_t> ids(size_t(SelectTopCapacity(k)));
      REQUIRE(SelectTop(ActiveKernels(), x.data(), n, k, ids.data()) == k);
      CHECK(std::set(ids.begin(), ids.begin() + k) == std::set(order.begin(), order.begin() + k));

      std::vector<int32_t> room(kCutCapacity);
      const Cut cut = FindCut(ActiveKernels(), x.data(), n, 0.0, k, room.data());
      const int32_t least = order[size_t(k - 1)];
      if (x[size_t(least)] == 0.0f) return;  // no weight: kept or not is all one
      CHECK(cut.value == x[size_t(least)]);
      CHECK(cut.tie_end == least + 1);
    });
  }
}

TEST_CASE("logprobs reports the token, the largest logits and the rank") {
  std::mt19937_64 rng(3);
  constexpr int64_t kVocab = 1003;
  std::vector<float> x = RandomLogits(3 * kVocab, rng);
  for (float& v : x) v = std::round(v * 4) / 4;  // ties
  std::vector<int32_t> token = {17, -1, 1002}, rank(3, -5);
  for (const int64_t k : {0, 1, 20, 1003}) {
    ForEachIsa([&] {
      std::vector<int32_t> ids(size_t(3 * (k + 1)), 77);
      std::vector<float> values(ids.size(), 7.0f);
      REQUIRE(Logprobs({TensorView::Dense(ids.data(), DType::kI32, {3, k + 1}),
                        TensorView::Dense(values.data(), DType::kF32, {3, k + 1}), Column(rank),
                        TensorView::Dense(x.data(), DType::kF32, {3, kVocab}), Column(token), k})
                  .ok());
      CHECK(ids[size_t(k + 1)] == -1);
      CHECK(values[size_t(k + 1)] == -INFINITY);
      CHECK(rank[1] == 0);
      for (const size_t r : {0, 2}) {
        const float* row = x.data() + r * kVocab;
        double sum = 0.0;
        int above = 0;
        for (int64_t i = 0; i < kVocab; ++i) {
          sum += std::exp(double(row[i]));
          above += row[i] > row[token[r]] ? 1 : 0;
        }
        std::vector<int32_t> order(kVocab);
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(),
                         [&](int32_t a, int32_t b) { return row[a] > row[b]; });
        order.insert(order.begin(), token[r]);
        CHECK(rank[r] == above + 1);
        for (int64_t i = 0; i <= k; ++i) {
          const size_t at = r * size_t(k + 1) + size_t(i);
          REQUIRE(ids[at] == order[size_t(i)]);
          REQUIRE(values[at] ==
                  doctest::Approx(double(row[ids[at]]) - std::log(sum)).epsilon(1e-6));
        }
      }
    });
  }
  token[0] = kVocab;
  std::vector<int32_t> ids(3);
  std::vector<float> values(3);
  CHECK(Refused(Logprobs({TensorView::Dense(ids.data(), DType::kI32, {3, 1}),
                          TensorView::Dense(values.data(), DType::kF32, {3, 1}), Column(rank),
                          TensorView::Dense(x.data(), DType::kF32, {3, kVocab}), Column(token), 0}),
                "token[0] is 1003"));
}

TEST_CASE("uniform numbers of neighbouring seeds and indices are unrelated") {
  constexpr int kSide = 256, kCells = 16;
  std::vector<int> cells(kCells * kCells, 0);
  for (uint64_t seed = 0; seed < kSide; ++seed) {
    for (uint64_t index = 0; index < kSide; ++index) {
      const double u = Uniform(seed, index), next = Uniform(seed, index + 1);
      REQUIRE((u > 0.0 && u < 1.0));  // 0 would be a fixed point showing, not chance
      ++cells[size_t(int(u * kCells) * kCells + int(next * kCells))];
    }
  }
  const double expected = double(kSide) * kSide / (kCells * kCells);
  double chi = 0.0;
  for (int c : cells) chi += (c - expected) * (c - expected) / expected;
  CHECK(chi < 255 + 4 * std::sqrt(2.0 * 255));
  CHECK(chi > 255 - 4 * std::sqrt(2.0 * 255));
}

}  // namespace
}  // namespace octavo::cpu

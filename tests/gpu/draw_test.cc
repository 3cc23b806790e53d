// Rows without top_k and top_p, which one pass draws from: beside float64, and in every batch
// alike.
#include <cfloat>

#include "backend.h"
#include "base/uniform.h"
#include "sampling_batch.h"

namespace octavo::cuda {
namespace {

using cpu::Tensor;

constexpr int64_t kChunk = 1024;  // elements that a warp sums at a time
constexpr double kInf = INFINITY;

// The share of each token in float64.
std::vector<double> Shares(const SampleBatch& b, int64_t row) {
  const int64_t vocab = b.logits.dim(1);
  const auto temperature = static_cast<double>(b.temperature[static_cast<size_t>(row)]);
  double largest = -kInf, total = 0.0;
  for (int64_t i = 0; i < vocab; ++i) largest = std::max(largest, b.logits.At({row, i}));
  std::vector<double> share;
  for (int64_t i = 0; i < vocab; ++i) {
    share.push_back(std::exp((b.logits.At({row, i}) - largest) / temperature));
    total += share.back();
  }
  for (double& s : share) s /= total;
  return share;
}

// Whether the row's uniform number falls on `token` in float64, or within rounding of it.
bool FallsOn(const SampleBatch& b, int64_t row, int32_t token) {
  constexpr double kRounding = 1e-6;
  const auto at = static_cast<size_t>(row), want = static_cast<size_t>(token);
  const std::vector<double> share = Shares(b, row);
  if (token < 0 || want >= share.size() || share[want] == 0.0) return false;
  const double u = Uniform(b.seed[at], static_cast<uint64_t>(b.sample_index[at]));
  double before = 0.0;
  for (size_t i = 0; i < want; ++i) before += share[i];
  return before - kRounding <= u && u <= before + share[want] + kRounding;
}

int64_t CountMisses(SampleBatch& b) {
  Tensor edited = b.logits;
  const std::vector<int32_t> got = b.OnGpu(&edited);
  int64_t misses = 0;
  for (size_t i = 0; i < got.size(); ++i) misses += !FallsOn(b, static_cast<int64_t>(i), got[i]);
  return misses;
}

TEST_CASE("CUDA draws without a cut where float64 does, at every edge of a chunk" *
          doctest::skip(!HasDevice())) {
  const float temperatures[] = {1e-4f, 0.02f, 0.7f, 1.0f, 30.0f, 1e4f};
  uint64_t seed = 1;
  for (const int64_t vocab :
       {int64_t{1}, int64_t{31}, int64_t{33}, kChunk - 1, kChunk, kChunk + 1, kChunk + 7,
        kChunk + 8, 2 * kChunk, 2 * kChunk + 257, 5 * kChunk + 1016, Size<int64_t>(151936, 9000)}) {
    for (const int64_t gap : {0, 3}) {
      CAPTURE(vocab);
      CAPTURE(gap);
      SampleBatch b(Size(30, 6), vocab, seed++, gap);
      for (size_t i = 0; i < b.temperature.size(); ++i) b.temperature[i] = temperatures[i % 6];
      CHECK(CountMisses(b) == 0);
    }
  }
}

// What a chunk of the row of a kind is moved by.
double Moved(int64_t kind, int64_t chunk, int64_t chunks) {
  switch (kind) {
    case 0:
      return -1e4 * static_cast<double>(chunk);
    case 1:
      return 1e4 * static_cast<double>(chunk);
    case 2:
      return chunk == 2 ? 0.0 : -kInf;
    case 3:
      return chunk % 2 == 0 ? -1e4 : -kInf;
    case 4:
      return chunk == chunks - 1 ? -3e4 : -kInf;
    case 5:
      return chunk == 1 || chunk == 4 ? 1e4 : 0.0;
    default:
      return chunk % 3 == 0 ? 3e38 : -3e38;
  }
}

TEST_CASE("CUDA draws from chunks that are far apart, and from none that is all -inf" *
          doctest::skip(!HasDevice())) {
  constexpr int64_t kKinds = 7;
  const int64_t vocab = 6 * kChunk + 100, chunks = 7, rows = 3 * kKinds * Size(8, 1);
  SampleBatch b(rows, vocab, 5);
  for (int64_t row = 0; row < rows; ++row) {
    b.temperature[static_cast<size_t>(row)] = row % 3 == 0 ? 1e-4f : row % 3 == 1 ? 1.0f : 1e4f;
    for (int64_t i = 0; i < vocab; ++i) {
      const double moved = Moved(row / 3 % kKinds, i / kChunk, chunks);
      b.logits.Set({row, i}, b.logits.At({row, i}) + moved);
    }
  }
  CHECK(CountMisses(b) == 0);
}

TEST_CASE("CUDA draws among equals alike, and a lone token always" * doctest::skip(!HasDevice())) {
  const int64_t vocab = 3 * kChunk + 5, rows = Size(40, 8);
  for (const double level : {0.0, -static_cast<double>(FLT_MAX), 1e30}) {
    CAPTURE(level);
    SampleBatch b(rows, vocab, 6);
    b.logits.Each([&](int64_t at) { b.logits.Put(at, level); });
    for (int64_t i = 0; i < vocab; ++i) {
      if (i != 2 * kChunk - 1) b.logits.Set({1, i}, -kInf);
    }
    CHECK(CountMisses(b) == 0);
  }
}

TEST_CASE("CUDA draws a row without a cut alike in every batch, dtype and alignment" *
          doctest::skip(!HasDevice())) {
  for (const int64_t vocab : {5 * kChunk + 24, 2 * kChunk + 1003}) {
    // As many rows as single CTAs have; the fewer below are those of larger and larger teams.
    const int64_t rows = Size(140, 6);
    SampleBatch b(rows, vocab, 8);
    // Numbers that all dtypes hold.
    b.logits.Each([&](int64_t at) { b.logits.Put(at, std::round(8.0 * b.logits.Get(at)) / 8.0); });
    for (size_t i = 0; i < b.min_p.size(); ++i) {
      b.temperature[i] = 0.8f;
      b.min_p[i] = i % 2 == 0 ? 0.0f : 0.03f;
    }
    Tensor edited = b.logits;
    const std::vector<int32_t> want = b.OnGpu(&edited);
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      for (const int64_t gap : {0, 5}) {
        for (const int64_t some :
             {int64_t{1}, int64_t{2}, Size<int64_t>(20, 3), Size<int64_t>(60, 4), rows}) {
          CAPTURE(vocab);
          CAPTURE(gap);
          CAPTURE(some);
          SampleBatch part = b;
          Tensor from(dtype, {some, vocab}, gap);
          for (int64_t row = 0; row < some; ++row) {
            for (int64_t i = 0; i < vocab; ++i) from.Set({row, i}, b.logits.At({row, i}));
          }
          part.Shorten(some);
          const std::vector<int32_t> got = part.OnGpuFrom(from, gap);
          CHECK(got == std::vector<int32_t>(want.begin(), want.begin() + some));
        }
      }
    }
  }
}

TEST_CASE("CUDA draws tokens as often as their share says" * doctest::skip(!HasDevice())) {
  constexpr int64_t kLikely = 24;
  constexpr double kMostChiSquare = 60.0;  // of 23 degrees of freedom: once in 30,000
  const int64_t vocab = 3 * kChunk + 50, rows = Size<int64_t>(2000, 400),
                calls = Size<int64_t>(20, 1);
  SampleBatch b(rows, vocab, 9);
  for (float& t : b.temperature) t = 0.9f;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < vocab; ++i) b.logits.Set({row, i}, -100.0);
    for (int64_t k = 0; k < kLikely; ++k) {  // some in every chunk, and neighbours
      b.logits.Set({row, k / 2 * 257 + k % 2}, -0.1 * static_cast<double>(k * 7 % kLikely));
    }
  }
  std::vector<double> seen(static_cast<size_t>(vocab), 0.0);
  for (int64_t call = 0; call < calls; ++call) {
    for (int64_t& index : b.sample_index) index += 1;
    Tensor edited = b.logits;
    for (const int32_t token : b.OnGpu(&edited)) seen.at(static_cast<size_t>(token)) += 1.0;
  }
  const std::vector<double> share = Shares(b, 0);
  double chi_square = 0.0, others = 0.0;
  for (size_t i = 0; i < share.size(); ++i) {
    const double wanted = share[i] * static_cast<double>(rows * calls);
    if (wanted < 1.0) {
      others += seen[i];
    } else {
      chi_square += (seen[i] - wanted) * (seen[i] - wanted) / wanted;
    }
  }
  CHECK(others == 0.0);
  CHECK(chi_square < kMostChiSquare);
}

TEST_CASE("CUDA gives no token to a row without a cut that is broken, and +inf its due" *
          doctest::skip(!HasDevice())) {
  const int64_t vocab = 2 * kChunk + 9;
  const std::initializer_list<int64_t> places = {0, 7, kChunk - 1, kChunk, vocab - 2, vocab - 1};
  for (const float min_p : {0.0f, 0.1f}) {
    CAPTURE(min_p);
    SampleBatch b(Size(40, 14), vocab, 12);
    for (float& p : b.min_p) p = min_p;
    int64_t row = 0;
    for (const int64_t place : places) b.logits.Set({row++, place}, cpu::kNan);
    b.logits.Set({row, 3}, kInf);  // in the chunk of a NaN
    b.logits.Set({row++, 5}, cpu::kNan);
    b.logits.Set({row, 3}, kInf);  // in another
    b.logits.Set({row++, vocab - 1}, cpu::kNan);
    for (int64_t i = 0; i < vocab; ++i) b.logits.Set({row, i}, -kInf);
    const int64_t broken = ++row;
    for (; row < b.logits.dim(0); ++row) {
      b.logits.Set({row, row % vocab}, kInf);
      b.logits.Set({row, vocab - row}, kInf);
      b.logits.Set({row, 1500}, -kInf);
      b.logits.Set({row, 1}, FLT_MAX);
    }
    Tensor host = b.logits, device = b.logits;
    const std::vector<int32_t> got = b.OnGpu(&device);
    CHECK(got == b.OnHost(&host));
    for (row = 0; row < b.logits.dim(0); ++row) {
      const int32_t token = got[static_cast<size_t>(row)];
      if (row < broken) {
        CHECK(token == -1);
      } else {
        const bool infinite = token == row % vocab || token == vocab - row;
        CHECK(infinite);
      }
    }
  }
}

TEST_CASE("CUDA draws from edited and masked rows what the CPU does" *
          doctest::skip(!HasDevice())) {
  for (const int64_t rows : {int64_t{1}, int64_t{2}, Size<int64_t>(40, 5)}) {
    CAPTURE(rows);
    const int64_t vocab = 3 * kChunk + 77, words = (vocab + 31) / 32, past = 300;
    SampleBatch b(rows, vocab, 21);
    const auto n = static_cast<size_t>(rows);
    for (float& x : b.presence) x = 0.7f;
    for (float& x : b.frequency) x = 0.3f;
    for (float& x : b.repetition) x = 1.3f;
    for (size_t i = 0; i < n; ++i) b.min_p[i] = i % 2 == 0 ? 0.0f : 0.02f;
    b.history_len.assign(n, past);
    b.prompt_len.assign(n, 100);
    for (int64_t i = 0; i < rows * past; ++i) {
      b.histories.push_back(static_cast<int32_t>(b.rng() % 2000) - 1);
    }
    for (int64_t i = 0; i < rows * words; ++i) {
      const bool nothing = i / words == 4;  // allowed in row 4
      b.masks.push_back(nothing ? 0 : static_cast<int32_t>(b.rng()));
    }
    for (int64_t i = 0; i < rows * 5; ++i) {
      b.bias_token.push_back(static_cast<int32_t>(b.rng() % 6));  // with repeats
      b.bias_value.push_back(i % 7 == 0 ? -INFINITY : static_cast<float>(b.rng() % 18) - 9.0f);
    }
    for (size_t i = 0; i <= n; ++i) b.bias_start[i] = static_cast<int32_t>(i * 5);
    b.Address(b.histories.data(), b.masks.data());
    Tensor host = b.logits, device = b.logits;
    const std::vector<int32_t> want = b.OnHost(&host), got = b.OnGpu(&device);
    int64_t differ = 0;
    for (size_t i = 0; i < n; ++i) differ += want[i] != got[i];
    // A draw within rounding of the border between two tokens may fall on either side.
    CHECK(differ <= (rows > 8 ? 1 : 0));
    if (rows > 4) {
      const bool refused = got[4] == -1 && want[4] == -1;
      CHECK(refused);
    }
  }
}

}  // namespace
}  // namespace octavo::cuda

// argmax, sample and logprobs on CUDA beside the CPU's: the same seeds draw the same tokens.
#include <memory>
#include <numeric>

#include "backend.h"
#include "cpu/tensor.h"
#include "device.h"
#include "octavo/cuda_ops.h"
#include "sampling_batch.h"

namespace octavo::cuda {
namespace {

using cpu::Column;
using cpu::Tensor;
using Batch = SampleBatch;

struct Choice {
  int32_t top_k;
  float top_p, min_p;
};

const std::initializer_list<int64_t> kVocabularies = {1, 40, 1500, Size(32000, 2500),
                                                      Size(151936, 7001)};

// One row is a cluster's, more rows those of smaller ones and of single CTAs.
const std::initializer_list<int64_t> kRowCounts = {1, 2, Size(64, 5)};

TEST_CASE("CUDA tokens are those of the CPU" * doctest::skip(!HasDevice())) {
  uint64_t seed = 1;
  for (const int64_t vocab : kVocabularies) {
    for (const Choice c :
         {Choice{0, 1.0f, 0.0f}, Choice{0, 1.0f, 0.05f}, Choice{50, 0.9f, 0.01f},
          Choice{0, 0.9f, 0.0f}, Choice{1000, 0.8f, 0.0f}, Choice{5000, 0.999f, 0.0f}}) {
      for (const int64_t rows : kRowCounts) {
        CAPTURE(vocab);
        CAPTURE(c.top_k);
        CAPTURE(c.top_p);
        CAPTURE(rows);
        Batch batch(rows, vocab, seed++, rows % 2 == 0 ? 3 : 0);
        for (float& t : batch.temperature) t = 0.9f;
        for (int32_t& k : batch.top_k) k = c.top_k;
        for (float& p : batch.top_p) p = c.top_p;
        for (float& p : batch.min_p) p = c.min_p;
        Tensor host = batch.logits, device = batch.logits;
        const std::vector<int32_t> want = batch.OnHost(&host), got = batch.OnGpu(&device);
        int64_t differ = 0;
        for (size_t i = 0; i < want.size(); ++i) {
          differ += want[i] != got[i];
          CHECK(got[i] >= 0);
          CHECK(got[i] < vocab);
        }
        // A draw within rounding of the border between two tokens may fall on either side.
        CHECK(differ <= (rows > 8 ? 1 : 0));
      }
    }
  }
}

TEST_CASE("CUDA greedy rows and argmax take the lowest id among equals" *
          doctest::skip(!HasDevice())) {
  for (const int64_t vocab : kVocabularies) {
    for (const int64_t rows : kRowCounts) {
      CAPTURE(vocab);
      CAPTURE(rows);
      Batch batch(rows, vocab, 7, 1);
      batch.logits.Each([&](int64_t i) { batch.logits.Put(i, std::round(batch.logits.Get(i))); });
      for (float& t : batch.temperature) t = 0.0f;
      Tensor host = batch.logits, device = batch.logits;
      const std::vector<int32_t> want = batch.OnHost(&host);
      CHECK(batch.OnGpu(&device) == want);
      std::vector<int32_t> token(want.size(), -7);
      const OnDevice dtoken(token), dlogits(batch.logits);
      CheckDone(Argmax({dtoken.view(), dlogits.view()}, nullptr));
      CHECK(dtoken.Column<int32_t>() == want);
    }
  }
}

TEST_CASE("CUDA draws from 16 bits what it draws from the same numbers in float32" *
          doctest::skip(!HasDevice())) {
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    for (const int64_t gap : {0, 5}) {
      for (const int64_t rows : kRowCounts) {
        CAPTURE(rows);
        CAPTURE(gap);
        const int64_t vocab = 8000;
        Batch b(rows, vocab, 13);
        const auto n = static_cast<size_t>(rows);
        for (size_t i = 0; i < n; ++i) {
          b.temperature[i] = i % 4 == 3 ? 0.0f : 0.8f;
          b.top_p[i] = i % 3 == 0 ? 1.0f : 0.9f;
          b.top_k[i] = i % 5 == 1 ? 40 : 0;
          b.repetition[i] = i % 2 == 1 ? 1.3f : 1.0f;  // every other row is edited
          b.bias_start[i + 1] = b.bias_start[i] + (i % 4 == 2 ? 1 : 0);
        }
        b.history_len.assign(n, 50);
        for (int64_t i = 0; i < rows * 50; ++i) {
          b.histories.push_back(static_cast<int32_t>(b.rng() % 2000));
        }
        b.masks.assign(1, 0);
        b.bias_token.assign(static_cast<size_t>(b.bias_start[n]) + 1, 77);
        b.bias_value.assign(b.bias_token.size(), 4.0f);
        Tensor narrow(dtype, {rows, vocab}, gap);
        b.logits.Each([&](int64_t at) {
          narrow.Set({at / vocab, at % vocab}, b.logits.Get(at));
          b.logits.Put(at, narrow.At({at / vocab, at % vocab}));
        });
        const OnDevice past(b.histories), scratch(Tensor(DType::kF32, {rows, vocab}, gap));
        for (size_t i = 0; i < n; ++i) {
          b.history[i] = reinterpret_cast<uintptr_t>(past.view().data) + i * 50 * 4;
        }
        std::vector<std::unique_ptr<OnDevice>> kept;
        const auto column = [&](auto& c) {
          kept.push_back(std::make_unique<OnDevice>(c));
          return kept.back()->view();
        };
        const auto run = [&](const Tensor& logits, bool wide) {
          std::vector<int32_t> token(n, -7);
          const OnDevice to(token), from(logits);
          SampleArgs a = b.Args(to.view(), from.view(), column);
          if (!wide) a.scratch = scratch.view();
          CheckDone(Sample(a, nullptr));
          REQUIRE(DeviceFinishes());
          return to.Column<int32_t>();
        };
        CHECK(run(narrow, false) == run(b.logits, true));
        std::vector<int32_t> token(n, -7);
        const OnDevice to(token), from(narrow), same(b.logits);
        CheckDone(Argmax({to.view(), from.view()}, nullptr));
        const std::vector<int32_t> got = to.Column<int32_t>();
        CheckDone(Argmax({to.view(), same.view()}, nullptr));
        CHECK(got == to.Column<int32_t>());
      }
    }
  }
}

TEST_CASE("CUDA edits logits as the CPU does" * doctest::skip(!HasDevice())) {
  for (const int64_t rows : kRowCounts) {
    CAPTURE(rows);
    const int64_t vocab = Size(40000, 20000), words = (vocab + 31) / 32, past = 300;
    Batch b(rows, vocab, 9);
    const auto n = static_cast<size_t>(rows);
    for (float& t : b.temperature) t = 0.0f;
    for (float& x : b.presence) x = 0.7f;
    for (float& x : b.frequency) x = 0.3f;
    for (float& x : b.repetition) x = 1.3f;
    b.history_len.assign(n, past);
    b.prompt_len.assign(n, 100);
    for (int64_t i = 0; i < rows * past; ++i) {
      b.histories.push_back(static_cast<int32_t>(b.rng() % 2000) - 1);
    }
    for (int64_t i = 0; i < rows * words; ++i) b.masks.push_back(static_cast<int32_t>(b.rng()));
    for (int64_t i = 0; i < rows * 5; ++i) {
      b.bias_token.push_back(static_cast<int32_t>(b.rng() % 6));  // with repeats
      b.bias_value.push_back(i % 7 == 0 ? -INFINITY : static_cast<float>(b.rng() % 18) - 9.0f);
    }
    for (size_t i = 0; i <= n; ++i) b.bias_start[i] = static_cast<int32_t>(i * 5);
    b.Address(b.histories.data(), b.masks.data());
    Tensor host = b.logits, device = b.logits;
    const std::vector<int32_t> want = b.OnHost(&host);
    CHECK(b.OnGpu(&device) == want);
    CHECK(device.bytes() == host.bytes());
  }
}

TEST_CASE("CUDA gives broken rows no token" * doctest::skip(!HasDevice())) {
  const int64_t vocab = 5000;
  Batch b(6, vocab, 11);
  for (float& p : b.top_p) p = 0.9f;
  b.logits.Set({0, vocab - 1}, cpu::kNan);
  for (int64_t i = 0; i < vocab; ++i) b.logits.Set({1, i}, -INFINITY);
  b.logits.Set({2, 17}, INFINITY);
  b.temperature[3] = -1.0f;
  b.repetition[4] = 0.0f;
  Tensor host = b.logits, device = b.logits;
  const std::vector<int32_t> want = b.OnHost(&host), got = b.OnGpu(&device);
  CHECK(got == want);
  CHECK(std::vector<int32_t>(got.begin(), got.begin() + 5) ==
        std::vector<int32_t>{-1, -1, 17, -1, -1});
}

TEST_CASE("CUDA logprobs are those of the CPU" * doctest::skip(!HasDevice())) {
  for (const int64_t vocab : kVocabularies) {
    for (const int64_t most : {0, 1, 20, 1000}) {
      for (const bool rounded : {false, true}) {
        const int64_t k = std::min(most, vocab), rows = 4;
        CAPTURE(vocab);
        CAPTURE(k);
        CAPTURE(rounded);
        Batch b(rows, vocab, 13 + static_cast<uint64_t>(k), rounded ? 3 : 0);
        // Rounded: thousands of equals at the border.
        if (rounded)
          b.logits.Each([&](int64_t i) { b.logits.Put(i, std::round(b.logits.Get(i))); });
        for (int64_t i = 0; i < vocab / 2; ++i) b.logits.Set({2, i}, -INFINITY);
        std::vector<int32_t> token, ids(static_cast<size_t>(rows * (k + 1)), -7), rank(4, -7);
        for (int64_t i = 0; i < rows; ++i) {
          token.push_back(static_cast<int32_t>(b.rng() % static_cast<uint64_t>(vocab)));
        }
        token[3] = -1;
        std::vector<float> values(ids.size(), NAN);
        const auto table = [&](TensorView v) {
          return TensorView::Dense(v.data, v.dtype, {rows, k + 1});
        };
        const OnDevice dids(ids), dvalues(values), drank(rank), dlogits(b.logits), dtoken(token);
        CheckDone(Logprobs({table(dids.view()), table(dvalues.view()), drank.view(), dlogits.view(),
                            dtoken.view(), k},
                           nullptr));
        REQUIRE(cpu::Logprobs({table(Column(ids)), table(Column(values)), Column(rank),
                               b.logits.view(), Column(token), k})
                    .ok());
        CHECK(dids.Column<int32_t>() == ids);
        CHECK(drank.Column<int32_t>() == rank);
        const std::vector<float> got = dvalues.Column<float>();
        int64_t wrong = 0;
        for (size_t i = 0; i < got.size(); ++i) {
          wrong += !(got[i] == values[i] || std::fabs(got[i] - values[i]) <= 2e-5f);
        }
        CHECK(wrong == 0);
      }
    }
  }
}

}  // namespace
}  // namespace octavo::cuda

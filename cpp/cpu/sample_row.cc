#include "cpu/sample_row.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/uniform.h"
#include "cpu/scratch.h"
#include "cpu/top.h"

namespace octavo::cpu {
namespace {

constexpr float kGreedyTemperature = 1e-5f;
// Up to this k the candidates are gathered and everything after runs on them alone; beyond it the
// threshold search over the whole row is faster than cutting back a large buffer.
constexpr int64_t kMaxGathered = 1024;
constexpr float kInf = std::numeric_limits<float>::infinity();

bool InRange(const SampleRowParams& p) {
  return p.temperature >= 0.0f && std::isfinite(p.temperature) && p.top_p >= 0.0f &&
         p.min_p >= 0.0f && p.min_p <= 1.0f && std::isfinite(p.presence) &&
         std::isfinite(p.frequency) && p.repetition > 0.0f && std::isfinite(p.repetition);
}

// Candidates: the whole row (ids null), or gathered tokens in rising order of their ids.
struct Candidates {
  float* weights;
  const int32_t* ids;
  int64_t n;
};

struct RowScratch {
  int32_t* ids;    // of gathered candidates, then of a cut
  float* weights;  // of gathered candidates
  float* sums;     // of chunks
  int32_t* cut_ids;
  uint32_t* counts;  // one per token of the vocabulary

  explicit RowScratch(int64_t vocab) {
    const int64_t gathered = SelectTopCapacity(kMaxGathered);
    const int64_t chunks = vocab / kSumChunk + 1;
    const int64_t words = gathered + kMaxGathered + chunks + kCutCapacity + vocab;
    auto* p = static_cast<int32_t*>(ThreadScratch(ScratchUse::kTask, words * 4));
    ids = p;
    weights = reinterpret_cast<float*>(p + gathered);
    sums = weights + kMaxGathered;
    cut_ids = reinterpret_cast<int32_t*>(sums + chunks);
    counts = reinterpret_cast<uint32_t*>(cut_ids + kCutCapacity);
  }
};

void ApplyBias(float* x, const SampleRowParams& p) {
  for (int64_t i = 0; i < p.num_bias; ++i) {
    float& logit = x[p.bias_token[i]];
    // A ban must not meet +inf: their sum would be NaN. A NaN stays, it marks the row as broken.
    logit = p.bias_value[i] == -kInf && !std::isnan(logit) ? -kInf : logit + p.bias_value[i];
  }
}

// Each token once, however often it occurs: counts hold occurrences in the output, plus a flag for
// the prompt, and a token's count is cleared when it has been served.
void ApplyPenalties(float* x, int64_t vocab, const SampleRowParams& p, uint32_t* counts) {
  constexpr uint32_t kInPrompt = 1u << 31;
  if (p.presence == 0.0f && p.frequency == 0.0f && p.repetition == 1.0f) return;
  const auto known = [vocab](int32_t token) { return token >= 0 && token < vocab; };
  std::fill_n(counts, vocab, 0u);
  for (int64_t i = 0; i < p.history_len; ++i) {
    const int32_t token = p.history[i];
    if (!known(token)) continue;
    if (i < p.prompt_len) {
      counts[token] |= kInPrompt;
    } else {
      ++counts[token];
    }
  }
  for (int64_t i = 0; i < p.history_len; ++i) {
    const int32_t token = p.history[i];
    if (!known(token) || counts[token] == 0) continue;
    const uint32_t in_output = counts[token] & ~kInPrompt;
    counts[token] = 0;
    float logit = x[token];
    logit = logit > 0.0f ? logit / p.repetition : logit * p.repetition;
    if (in_output > 0) logit -= p.frequency * static_cast<float>(in_output) + p.presence;
    x[token] = logit;
  }
}

double Total(const float* sums, int64_t n) {
  double total = 0.0;
  for (int64_t c = 0; c * kSumChunk < n; ++c) total += static_cast<double>(sums[c]);
  return total;
}

// The candidate at which the running sum of weights passes u * total.
int64_t Draw(const Candidates& c, const float* sums, double u) {
  const double goal = u * Total(sums, c.n);
  double before = 0.0;
  int64_t chunk = 0, last = 0;
  // The last chunk with any weight answers if rounding leaves the goal beyond all of them.
  for (int64_t i = 0; i * kSumChunk < c.n; ++i) {
    const double sum = static_cast<double>(sums[i]);
    if (sum == 0.0) continue;
    chunk = i;
    if (before + sum > goal) break;
    before += sum;
  }
  const int64_t end = std::min(c.n, (chunk + 1) * kSumChunk);
  for (int64_t i = chunk * kSumChunk; i < end; ++i) {
    if (c.weights[i] == 0.0f) continue;
    last = i;
    before += static_cast<double>(c.weights[i]);
    if (before > goal) break;
  }
  return last;
}

// Gathers the top k, or takes the whole row, as weights relative to the largest (which is 1).
Candidates Weigh(const Kernels& kernels, float* x, int64_t vocab, const SampleRowParams& p,
                 float largest, const RowScratch& s) {
  const float scale = 1.0f / p.temperature;
  if (p.top_k <= 0 || p.top_k >= vocab || p.top_k > kMaxGathered) {
    kernels.exp_weights(x, vocab, largest, scale, s.sums);
    return {x, nullptr, vocab};
  }
  const int64_t n = SelectTop(kernels, x, vocab, p.top_k, s.ids);
  std::sort(s.ids, s.ids + n);
  for (int64_t i = 0; i < n; ++i) s.weights[i] = x[s.ids[i]];
  kernels.exp_weights(s.weights, n, largest, scale, s.sums);
  return {s.weights, s.ids, n};
}

}  // namespace

int32_t SampleRow(const Kernels& kernels, float* x, int64_t vocab, const SampleRowParams& p) {
  if (!InRange(p)) return -1;
  const RowScratch s(vocab);
  if (p.mask != nullptr) kernels.apply_mask(x, vocab, p.mask);
  ApplyBias(x, p);
  ApplyPenalties(x, vocab, p, s.counts);
  bool nan = false;
  const float largest = kernels.largest(x, vocab, &nan);
  if (nan || largest == -kInf) return -1;
  if (p.temperature < kGreedyTemperature) {
    return static_cast<int32_t>(kernels.find(x, vocab, largest));
  }

  const Candidates c = Weigh(kernels, x, vocab, p, largest, s);
  const auto cut = [&](double mass, int64_t count) {
    const Cut at = FindCut(kernels, c.weights, c.n, mass, count, s.cut_ids);
    kernels.drop_below(c.weights, c.n, at.value, at.tie_end);
    kernels.chunk_sums(c.weights, c.n, s.sums);
  };
  if (p.min_p > 0.0f) {
    kernels.drop_below(c.weights, c.n, p.min_p, c.n);
    kernels.chunk_sums(c.weights, c.n, s.sums);
  }
  if (p.top_k > 0 && p.top_k < c.n) cut(0.0, p.top_k);
  if (p.top_p < 1.0f) cut(static_cast<double>(p.top_p) * Total(s.sums, c.n), 1);
  const int64_t drawn = Draw(c, s.sums, Uniform(p.seed, p.sample_index));
  return c.ids == nullptr ? static_cast<int32_t>(drawn) : c.ids[drawn];
}

}  // namespace octavo::cpu

// The consumer warpgroups of the wgmma prefill kernel: scores, masks, online softmax, weighted sums
// of V.
//
// A warpgroup owns 64 of the tile's rows; fragments as wgmma.cuh says, so a thread holds parts of
// two rows, called low and high (eight further on). The scores of the next keys are set going
// before the sums of these, and the two warpgroups take turns to issue, so that one's exponentials
// run beside the other's products.
#pragma once

#include "attention/prefill_softmax.cuh"
#include "attention/prefill_wgmma_pipe.cuh"
#include "common/wgmma.cuh"

namespace octavo::cuda {

inline constexpr int kTurnBarrier = 1;  // named barriers: a warpgroup's turn to issue
inline constexpr int kNoColumns = 16;   // of a descriptor whose operand has rows along k: unused
inline constexpr int kConsumerThreads = 2 * kWarpgroupSize;
// A row's maximum is only there to keep its weights in range: what rises by less (log2) leaves it
// as it is, and the sums as they are. Weights then stay below 2^8, which 16 bits hold as exactly.
inline constexpr float kLeastRise = 8.0f;

template <class S>
class WgmmaConsumer {
 public:
  __device__ __forceinline__ WgmmaConsumer(const PrefillParams& p, const WgmmaPipe<S>& pipe,
                                           int warpgroup)
      : p_(p),
        pipe_(pipe),
        warpgroup_(warpgroup),
        scale_(p.layer.cap_log2 != 0.0f ? 1.0f : p.layer.scale_log2),
        queries_(
            MatrixDescriptor(pipe.queries() + warpgroup * (S::kQueryPart / 2), 0, kSwizzleBlock)),
        keys_(MatrixDescriptor(pipe.keys(0), kNoColumns, kSwizzleBlock)),
        values_(MatrixDescriptor(pipe.values(0), S::kKeyPart, kSwizzleBlock)) {}

  __device__ __forceinline__ void Run(const PrefillTile* tickets) {
    if (warpgroup_ == 1) ArriveThreadsOf(kTurnBarrier, kConsumerThreads);
    TicketReader<S> reader(pipe_, tickets);
#pragma unroll 1
    for (;;) {
      const PrefillTile& tile = reader.Next();
      if (tile.tokens == 0) return;
      Item(tile);
      Store(tile);
      reader.Done();
    }
  }

 private:
  using T = typename S::Element;
  static constexpr int kSums = S::kHeadDim / 2;
  static constexpr int kScores = S::kKeys / 2;
  static constexpr int kKeySteps = S::kKeys / 16;
  static constexpr int kDimSteps = S::kHeadDim / 16;
  static constexpr int kPartSteps = kBoxDims / 16;
  static constexpr int kStepBytes = 32;  // 16 elements of a row

  static_assert(kWgmmaRows == 2 * 64 && S::kQueryPart / 2 % kSwizzleBlock == 0);
  static_assert(S::kStages >= 2, "the producer clears a tail one tile late");

  // One tile of queries against all its keys, from the diagonal down.
  __device__ __forceinline__ void Item(const PrefillTile& tile) {
    const int first = tile.first_keys;
    int j = tile.last_keys;
    Begin(tile);
    WaitBarrier(pipe_.query_full(), query_parity_);
    query_parity_ ^= 1;
    WaitBarrier(pipe_.key_full(key_.at), key_.parity);
    IssueScores();
    WgmmaWait<0>();
    PinRegisters(s_);
    ReleaseKeys(j == first);
    Shape(j);
    Weigh();
    PackWeights();
#pragma unroll 1
    for (--j; j >= first; --j) {
      if (Bare(j)) {
        Step<true>(j, j == first);
      } else {
        Step<false>(j, j == first);
      }
    }
    WaitBarrier(pipe_.value_full(value_.at), value_.parity);
    IssueSums();
    WgmmaWait<0>();
    PinRegisters(o_);
    ReleaseValues();
  }

  // The scores of keys j beside the sums of the keys before. kBare: as Bare says.
  template <bool kBare>
  __device__ __forceinline__ void Step(int j, bool last) {
    WaitBarrier(pipe_.key_full(key_.at), key_.parity);
    SyncThreadsOf(kTurnBarrier + warpgroup_, kConsumerThreads);
    IssueScores();
    WaitBarrier(pipe_.value_full(value_.at), value_.parity);
    IssueSums();
    ArriveThreadsOf(kTurnBarrier + 1 - warpgroup_, kConsumerThreads);
    WgmmaWait<1>();
    PinRegisters(s_);
    ReleaseKeys(last);
    if constexpr (!kBare) Shape(j);
    Weigh();
    PinRegisters(s_);
    // Passes at once: a boundary above which the exponentials stay, without which ptxas sinks
    // them below the wait for the sums.
    WaitBarrier(pipe_.value_full(value_.at), value_.parity);
    WgmmaWait<0>();
    PinRegisters(o_);
    PinRegisters(s_);
    ReleaseValues();
    Rescale();
    PackWeights();
  }

  __device__ __forceinline__ void Begin(const PrefillTile& tile) {
    const int row = Row();
    const int first = tile.PositionOf(TokenOfRow(p_, warpgroup_ * 64));
    const int last = tile.PositionOf(TokenOfRow(p_, warpgroup_ * 64 + 63));
    bare_from_ = CeilDiv(FirstSeen(last, p_.layer.window), S::kKeys);
    bare_to_ = p_.layer.cap_log2 != 0.0f ? 0 : (first + 1) / S::kKeys;
    low_position_ = tile.PositionOf(TokenOfRow(p_, row));
    high_position_ = tile.PositionOf(TokenOfRow(p_, row + 8));
    low_seen_ = FirstSeen(low_position_, p_.layer.window);
    high_seen_ = FirstSeen(high_position_, p_.layer.window);
    low_max_ = high_max_ = kNoScore;
    low_sum_ = high_sum_ = 0.0f;
#pragma unroll
    for (int i = 0; i < kSums; ++i) o_[i] = 0.0f;
  }

  // The first of this thread's two rows in the tile.
  __device__ __forceinline__ int Row() const {
    const int thread = threadIdx.x % kWarpgroupSize;
    return warpgroup_ * 64 + thread / kWarpSize * 16 + thread % kWarpSize / 4;
  }

  __device__ __forceinline__ void IssueScores() {
    const uint64_t keys = Advance(keys_, key_.at * S::kTileBytes);
    WgmmaFence();
    WgmmaShared<T, false>(s_, queries_, keys);
#pragma unroll
    for (int i = 1; i < kDimSteps; ++i) {
      const int part = i / kPartSteps, step = i % kPartSteps * kStepBytes;
      WgmmaShared<T, true>(s_, Advance(queries_, part * S::kQueryPart + step),
                           Advance(keys, part * S::kKeyPart + step));
    }
    WgmmaCommit();
  }

  __device__ __forceinline__ void IssueSums() {
    const uint64_t values = Advance(values_, value_.at * S::kTileBytes);
    WgmmaFence();
#pragma unroll
    for (int i = 0; i < kKeySteps; ++i) {
      WgmmaRegisters<T>(o_, weights_[i], Advance(values, i * S::kBoxBytes));
    }
    WgmmaCommit();
  }

  __device__ __forceinline__ void ReleaseKeys(bool last) {
    if (threadIdx.x % kWarpSize == 0) {
      ArriveBarrier(pipe_.key_empty(key_.at));
      if (last) ArriveBarrier(pipe_.query_empty());
    }
    key_.Step();
  }

  __device__ __forceinline__ void ReleaseValues() {
    if (threadIdx.x % kWarpSize == 0) ArriveBarrier(pipe_.value_empty(value_.at));
    value_.Step();
  }

  // Whether the warpgroup takes the scores of keys j as they are, as of most keys.
  __device__ __forceinline__ bool Bare(int j) const { return j >= bare_from_ && j < bare_to_; }

  __device__ __forceinline__ void Shape(int j) {
    if (p_.layer.cap_log2 != 0.0f) SoftCapScores();
    Mask(j * S::kKeys);
  }

  // Scores become weights; what the sums so far have to be multiplied with is left in the factors.
  __device__ __forceinline__ void Weigh() {
    float low = low_max_, high = high_max_;
#pragma unroll
    for (int i = 0; i < kScores; i += 4) {
      low = fmaxf(low, fmaxf(s_[i], s_[i + 1]));
      high = fmaxf(high, fmaxf(s_[i + 2], s_[i + 3]));
    }
    low = MaxOfQuad(low);
    high = MaxOfQuad(high);
    rises_ = __any_sync(kFullWarp, (low - low_max_) * scale_ > kLeastRise ||
                                       (high - high_max_) * scale_ > kLeastRise);
    if (rises_) {
      low_factor_ = Exp2((low_max_ - low) * scale_);
      high_factor_ = Exp2((high_max_ - high) * scale_);
      low_max_ = low;
      high_max_ = high;
      low_sum_ *= low_factor_;
      high_sum_ *= high_factor_;
    }
    const float low_offset = low_max_ * scale_, high_offset = high_max_ * scale_;
#pragma unroll
    for (int i = 0; i < kScores; i += 4) {
      s_[i] = Exp2InPlace(fmaf(s_[i], scale_, -low_offset));
      s_[i + 1] = Exp2InPlace(fmaf(s_[i + 1], scale_, -low_offset));
      s_[i + 2] = Exp2InPlace(fmaf(s_[i + 2], scale_, -high_offset));
      s_[i + 3] = Exp2InPlace(fmaf(s_[i + 3], scale_, -high_offset));
      low_sum_ += s_[i] + s_[i + 1];
      high_sum_ += s_[i + 2] + s_[i + 3];
    }
  }

  __device__ __forceinline__ void SoftCapScores() {
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      s_[i] = p_.layer.cap_log2 * Tanh(s_[i] * p_.layer.cap_scale);
    }
  }

  // Keys are counted from this lane's first one, so that each test is against a constant.
  __device__ __forceinline__ void Mask(int key) {
    const int from = key + 2 * (threadIdx.x % 4);
    const int low = low_position_ - from, high = high_position_ - from;
    const int low_seen = low_seen_ - from, high_seen = high_seen_ - from;
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      const int at = i / 4 * 8 + i % 2;
      const bool upper = i % 4 >= 2;
      if (at > (upper ? high : low) || at < (upper ? high_seen : low_seen)) s_[i] = -INFINITY;
    }
  }

  __device__ __forceinline__ void Rescale() {
    if (!rises_) return;
#pragma unroll
    for (int i = 0; i < kSums; ++i) o_[i] *= i % 4 >= 2 ? high_factor_ : low_factor_;
  }

  // The weights as A operands, 16 keys each.
  __device__ __forceinline__ void PackWeights() {
#pragma unroll
    for (int k = 0; k < kKeySteps; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        weights_[k][i] = Pack<T>(s_[8 * k + 2 * i], s_[8 * k + 2 * i + 1]);
      }
    }
  }

  __device__ __forceinline__ static float MaxOfQuad(float x) {
    x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, 1));
    return fmaxf(x, __shfl_xor_sync(kFullWarp, x, 2));
  }
  __device__ __forceinline__ static float SumOfQuad(float x) {
    x += __shfl_xor_sync(kFullWarp, x, 1);
    return x + __shfl_xor_sync(kFullWarp, x, 2);
  }

  __device__ __forceinline__ void Store(const PrefillTile& tile) {
    StoreRow<0>(tile, Row(), low_max_, SumOfQuad(low_sum_));
    StoreRow<2>(tile, Row() + 8, high_max_, SumOfQuad(high_sum_));
  }

  // kFirst: where the row's sums begin in each four of o_.
  template <int kFirst>
  __device__ __forceinline__ void StoreRow(const PrefillTile& tile, int row, float maximum,
                                           float sum) {
    const int token = TokenOfRow(p_, row);
    if (token >= tile.tokens) return;
    const int head = tile.kv_head * p_.layer.group + row - token * p_.layer.group;
    const int dim = 2 * static_cast<int>(threadIdx.x % 4);
    if (tile.shared()) {
      const int heads = p_.layer.kv_heads * p_.layer.group;
      const int64_t state = int64_t{tile.first_state() + token} * heads + head;
      float* const sums = p_.shared_sums + state * S::kHeadDim + dim;
#pragma unroll
      for (int i = 0; i < kSums / 4; ++i) {
        *reinterpret_cast<float2*>(sums + i * 8) =
            make_float2(o_[4 * i + kFirst], o_[4 * i + kFirst + 1]);
      }
      if (dim == 0) p_.shared_stats[state] = make_float2(maximum * scale_, sum);
      return;
    }
    const float f = OutputFactor(p_.layer, head, maximum * scale_, sum);
    char* const out = OutAt<T>(p_.layer, {tile.first_token + token, head}, dim);
#pragma unroll
    for (int i = 0; i < kSums / 4; ++i) {
      *reinterpret_cast<uint32_t*>(out + i * 8 * sizeof(T)) =
          Pack<T>(o_[4 * i + kFirst] * f, o_[4 * i + kFirst + 1] * f);
    }
  }

  const PrefillParams& p_;
  const WgmmaPipe<S>& pipe_;
  const int warpgroup_;
  const float scale_;
  const uint64_t queries_, keys_, values_;  // descriptors; of stage 0
  typename WgmmaPipe<S>::Stage key_, value_;
  uint32_t query_parity_ = 0;
  int bare_from_ = 0, bare_to_ = 0;           // the groups of keys that every row sees whole
  int low_position_ = 0, high_position_ = 0;  // of both rows
  int low_seen_ = 0, high_seen_ = 0;          // the first keys that the rows see
  float o_[kSums];
  float s_[kScores];
  uint32_t weights_[kKeySteps][4];
  // What the weights are relative to: about the maximum of the scores so far, before scale_.
  float low_max_ = 0.0f, high_max_ = 0.0f;
  float low_sum_ = 0.0f, high_sum_ = 0.0f;
  bool rises_ = false;  // whether the sums so far have to be multiplied with the factors
  float low_factor_ = 0.0f, high_factor_ = 0.0f;
};

}  // namespace octavo::cuda

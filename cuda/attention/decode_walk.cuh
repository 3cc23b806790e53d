// What a decode CTA does: its share of the plan, then segments that are dealt (schedule.h).
//
// A CTA that is done takes the next segment that nobody has: they are counted in memory. Each CTA
// asks until it is told that there is none, and who is told so last sets the count back for the
// next layer. Which CTA computes a segment changes no bit of it.
#pragma once

#include "attention/decode_merge.cuh"
#include "attention/decode_stream.cuh"

namespace octavo::cuda {

// The segments that are dealt to a CTA.
template <class S>
class Dealer {
 public:
  __device__ __forceinline__ Dealer(const DecodeParams& p, const CtaWork& work, float* merge)
      : p_(p),
        dealt_(work.dealt),
        number_(reinterpret_cast<int*>(merge + S::kMergeFloats + S::kStatFloats + S::kDealtFlag)) {}

  // Before which of a segment's tiles this thread asks, so that the answer is there at its end; -1
  // if it does not. One thread does.
  __device__ __forceinline__ int AsksAt(int tiles) const {
    if (dealt_ == 0 || threadIdx.x != 0) return -1;
    return Max(0, CeilDiv(tiles, S::kWarps) - S::kStages) * S::kWarps;
  }
  __device__ __forceinline__ void Ask() { mine_ = static_cast<int>(atomicAdd(p_.ticket, 1u)); }
  // Leaves the answer in front of a barrier. The next one goes elsewhere: others may read this
  // late.
  __device__ __forceinline__ void Leave() const { *number_ = mine_; }

  // Whether there is a segment for this CTA, which then is all of *work. REQUIRES: a barrier since
  // the answer was left.
  __device__ __forceinline__ bool Take(CtaWork* work) {
    if (dealt_ == 0) return false;
    const int number = *number_;
    number_ = reinterpret_cast<int*>(reinterpret_cast<uintptr_t>(number_) ^ sizeof(int));
    if (number >= dealt_) {
      const int last = dealt_ + static_cast<int>(gridDim.x) - 1;
      if (threadIdx.x == 0 && number == last) *p_.ticket = 0;
      return false;
    }
    work->segments = 1;
    work->first = p_.segments[gridDim.x + number];
    return true;
  }

 private:
  const DecodeParams& p_;
  const int dealt_;  // to all CTAs together
  int* number_;      // one of two neighbours by turns
  int mine_ = 0;
};

// Computes a CTA's segments, from a plan that may be read. `rows` knows the queries: Find(segment,
// &state) asks for what a segment needs, Begin(segment, &state) completes it, and Complete(segment,
// tile's number, tile) may change a tile that was loaded. `wait`() is called once, before anything
// else that the kernel in front has written is read, and after the first tiles have been found;
// with How::kStartsEarly after they have been asked for. How::kShares and How::kDeals say whether
// rows may have shared keys and segments may be dealt.
template <class S, class How, class Rows, class Wait>
__device__ __forceinline__ void Walk(const DecodeParams& p, TileStream<S>* stream, Rows* rows,
                                     float* merge, const Wait& wait) {
  const int warp = threadIdx.x / kWarpSize;
  CtaWork work = p.ctas[blockIdx.x];
  Dealer<S> dealer(p, work, merge);
  bool begins = true;
#pragma unroll 1
  while (true) {
    stream->Find(work);
    if (!How::kStartsEarly && begins) wait();
    if (work.segments == 0) {
      if (How::kStartsEarly) wait();
      return;
    }
    stream->Start();
    Segment g = work.first;
    SoftmaxState<S> state;
    rows->Find(g, &state);
    if (How::kStartsEarly && begins) wait();
    begins = false;
#pragma unroll 1
    for (int i = 1; i <= work.segments; ++i) {
      rows->Begin(g, &state);
      // Read ahead: a segment's end would otherwise wait for memory twice.
      Segment next = g;
      if (i < work.segments) next = p.segments[work.first_segment + i];
      const int ask_at = How::kDeals && i == work.segments ? dealer.AsksAt(g.tiles) : -1;
      state.Clear();
#pragma unroll 1
      for (int first = 0; first < g.tiles; first += S::kWarps) {
        if (first == ask_at) dealer.Ask();
        const uint32_t tile = stream->Next();
        if (first + warp < g.tiles) {
          const int number = g.first_tile + first + warp;
          rows->Complete(g, number, tile);
          state.AddTile(p.layer, g, number * kTileTokens, tile);
        }
      }
      state.SumColumns();
      if (i < work.segments) rows->Find(next, &state);
      if (ask_at >= 0) dealer.Leave();
      // The prefill kernel leaves the states of shared keys. It began before any CTA of this one,
      // so whoever waits here keeps it from no multiprocessor.
      if (How::kShares && g.shared >= 0) GridDependencyWait();
      MergeWarps<S, How::kShares>(p, g, state, merge);
      if (g.slot >= 0) MergeSplits<S, How::kShares>(p, g, merge);
      g = next;
    }
    if (!How::kDeals || !dealer.Take(&work)) return;
  }
}

}  // namespace octavo::cuda

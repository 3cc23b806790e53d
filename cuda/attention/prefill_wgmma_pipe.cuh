// How the warps of the wgmma prefill kernel hand tiles to each other: barriers and rings in shared
// memory.
#pragma once

#include "attention/prefill_wgmma.h"
#include "common/hopper.cuh"

namespace octavo::cuda {

inline constexpr int kConsumerWarps = 8;
// Who reads a ticket: the warps that load keys, values and queries, and the consumers.
inline constexpr int kTicketReaders = 3 + kConsumerWarps;

// A place in a ring of kSize, and the parity of the round that is under way there.
template <int kSize>
struct RingPlace {
  int at = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void Step() {
    if (++at == kSize) {
      at = 0;
      parity ^= 1;
    }
  }
};

// Addresses in shared memory. `full` barriers end a phase when a tile may be read, `empty` ones
// when it may be overwritten.
template <class S>
struct WgmmaPipe {
  uint32_t base;

  using Stage = RingPlace<S::kStages>;
  using TicketPlace = RingPlace<S::kTickets>;

  __device__ __forceinline__ uint32_t queries() const { return base; }
  __device__ __forceinline__ uint32_t keys(int stage) const {
    return base + S::kKeyAt + stage * S::kTileBytes;
  }
  __device__ __forceinline__ uint32_t values(int stage) const {
    return base + S::kValueAt + stage * S::kTileBytes;
  }
  __device__ __forceinline__ uint32_t key_full(int stage) const { return Barrier(stage); }
  __device__ __forceinline__ uint32_t key_empty(int stage) const {
    return Barrier(S::kStages + stage);
  }
  __device__ __forceinline__ uint32_t value_full(int stage) const {
    return Barrier(2 * S::kStages + stage);
  }
  __device__ __forceinline__ uint32_t value_empty(int stage) const {
    return Barrier(3 * S::kStages + stage);
  }
  // The bytes of a value tile whose last rows the producer has still to clear.
  __device__ __forceinline__ uint32_t value_landed() const { return Barrier(4 * S::kStages); }
  __device__ __forceinline__ uint32_t query_full() const { return Barrier(4 * S::kStages + 1); }
  __device__ __forceinline__ uint32_t query_empty() const { return Barrier(4 * S::kStages + 2); }
  __device__ __forceinline__ uint32_t ticket_full(int at) const {
    return Barrier(4 * S::kStages + 3 + at);
  }
  __device__ __forceinline__ uint32_t ticket_empty(int at) const {
    return Barrier(4 * S::kStages + 3 + S::kTickets + at);
  }

  // One thread's part; a __syncthreads follows.
  __device__ __forceinline__ void Init() const {
    for (int i = 0; i < S::kStages; ++i) {
      InitBarrier(key_full(i), 1);
      InitBarrier(key_empty(i), kConsumerWarps);
      InitBarrier(value_full(i), 1);
      InitBarrier(value_empty(i), kConsumerWarps);
    }
    InitBarrier(value_landed(), 1);
    InitBarrier(query_full(), 1);
    InitBarrier(query_empty(), kConsumerWarps);
    for (int i = 0; i < S::kTickets; ++i) {
      InitBarrier(ticket_full(i), 1);
      InitBarrier(ticket_empty(i), kTicketReaders);
    }
    FenceBarrierInit();
    FenceAsyncShared();
  }

 private:
  __device__ __forceinline__ uint32_t Barrier(int index) const {
    return base + S::kBarrierAt + index * kBarrierBytes;
  }
};

// The warp's part of a barrier: one arrival, after all its lanes have done what is reported.
__device__ __forceinline__ void ArriveWarp(uint32_t barrier) {
  __syncwarp();
  if (threadIdx.x % kWarpSize == 0) ArriveBarrier(barrier);
}

// A warp's walk over the CTA's items, which the ticket warp writes down in order. The last ticket
// has no tokens.
template <class S>
class TicketReader {
 public:
  __device__ __forceinline__ TicketReader(const WgmmaPipe<S>& pipe, const PrefillTile* tickets)
      : pipe_(pipe), tickets_(tickets) {}

  // Waits for the next ticket; it stays until Done.
  __device__ __forceinline__ const PrefillTile& Next() {
    WaitBarrier(pipe_.ticket_full(place_.at), place_.parity);
    return tickets_[place_.at];
  }
  __device__ __forceinline__ void Done() {
    ArriveWarp(pipe_.ticket_empty(place_.at));
    place_.Step();
  }

 private:
  const WgmmaPipe<S>& pipe_;
  const PrefillTile* tickets_;
  RingPlace<S::kTickets> place_;
};

}  // namespace octavo::cuda

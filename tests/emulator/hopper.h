// What sm_90a adds, on the emulator: barriers in shared memory, copies by tensor map and products
// of a warpgroup.
//
// A copy lands at any moment until somebody cannot go on without it, and counts its bytes on its
// barrier then. A product reads its operands at any moment between its commit and the wait that
// covers it, registers included; its sums are NaN from its issue until that wait. Each warp does
// its own sixteen rows of a product. Not emulated: which proxy sees a write when, so a missing
// fence.proxy.async goes unnoticed.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "emulator/cta.h"

namespace octavo::emulator {

void InitMbarrier(uint32_t address, int arrivals, Where where);
// One arrival, after the phase has been told to wait for so many bytes more.
void ArriveMbarrier(uint32_t address, int bytes, Where where);
void WaitMbarrier(uint32_t address, uint32_t parity, Where where);

void CopyBox(uint32_t to, const CUtensorMap& map, uint32_t mbarrier, const int (&at)[5],
             Where where);

// Sums and operands of one product. `a` is in registers, or null where a_descriptor says where it
// lies; `b` lies in shared memory, rows along n if `transposed`.
struct WgmmaOperands {
  float* d;
  int n;
  const uint32_t* a;
  uint64_t a_descriptor;
  uint64_t b_descriptor;
  bool transposed;
  bool add;
  bool half;
};
void IssueWgmma(const WgmmaOperands& operands, Where where);
void CommitWgmma(Where where);
void WaitWgmma(int pending, Where where);

}  // namespace octavo::emulator

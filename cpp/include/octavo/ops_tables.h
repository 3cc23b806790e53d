// The ops between the core's memory and a device's: block tables that are brought to where kernels
// read them, and blocks that move between the pool and host memory.
//
// The scheduler keeps a table in host memory and changes it while a device is a step behind. What a
// step reads does not change until the step is finished (docs/contracts/step.md, clause 25), so the
// step fetches its own lines when it runs, and the host keeps no account of what the device knows.
#pragma once

#include <cstdint>

#include "octavo/status.h"
#include "octavo/tensor_view.h"

struct CUstream_st;  // what cudaStream_t points to

namespace octavo {

// table[s, i] = source[s, i] for s = row_slot[r] and every i < ceil(seq_len[r] / block_size). A row
// of no tokens fetches nothing.
struct FetchBlocksArgs {
  TensorView table;           // [slots, entries] int32, out
  TensorView row_slot;        // [R] int32, in [0, slots)
  TensorView seq_len;         // [R] int32
  int64_t source = 0;         // address of an int32 table that the backend can read
  int64_t source_slots = 0;   // its lines; a row beyond them fetches nothing
  int64_t source_stride = 0;  // entries of one of its lines, all of which fit into `table`
  int64_t block_size = 0;
};

// Copies `bytes` bytes at each of the pairs of places, one way or the other. The runs may come in
// any order, so those written must not overlap.
struct CopyRunsArgs {
  TensorView pool;    // [P] uint8, written with `to_pool`
  TensorView memory;  // [M] uint8 in host memory, else written
  TensorView runs;    // [n, 3] int64 in host memory: place in pool, place in memory, bytes
  bool to_pool = false;
};

Status Validate(const FetchBlocksArgs& a);
// Reads the runs too: they lie in host memory whatever the backend.
Status Validate(const CopyRunsArgs& a);
// REQUIRES: Validate(a) is ok and the index tensors lie in host memory.
Status ValidateIndices(const FetchBlocksArgs& a);

namespace cpu {
Status FetchBlocks(const FetchBlocksArgs& a);
Status CopyRuns(const CopyRunsArgs& a);
}  // namespace cpu

namespace cuda {
// `source` is host memory that is registered with the device. Rows out of range are skipped.
Status FetchBlocks(const FetchBlocksArgs& a, CUstream_st* stream);
// One asynchronous copy a run, in the stream's order where `memory` is registered with the device;
// elsewhere the host waits for each. Not captured: the places are the host's at this moment.
Status CopyRuns(const CopyRunsArgs& a, CUstream_st* stream);
}  // namespace cuda

}  // namespace octavo

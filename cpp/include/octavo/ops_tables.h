// The op that brings block tables to where kernels read them.
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

Status Validate(const FetchBlocksArgs& a);
// REQUIRES: Validate(a) is ok and the index tensors lie in host memory.
Status ValidateIndices(const FetchBlocksArgs& a);

namespace cpu {
Status FetchBlocks(const FetchBlocksArgs& a);
}  // namespace cpu

namespace cuda {
// `source` is host memory that is registered with the device. Rows out of range are skipped.
Status FetchBlocks(const FetchBlocksArgs& a, CUstream_st* stream);
}  // namespace cuda

}  // namespace octavo

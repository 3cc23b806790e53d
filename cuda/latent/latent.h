// What the kernels of latent attention are told.
#pragma once

#include <cstdint>

#include "attention/schedule.h"
#include "common/launch.h"
#include "octavo/dtype.h"

namespace octavo::cuda {

// Strides in bytes, 64 bits: the pool crosses 2^31 elements.
struct LatentParams {
  const char* q;      // [N, H, W]
  char* out;          // [N, H, C]
  const char* cache;  // [B, bs, W]
  int64_t q_token_stride, q_head_stride;
  int64_t out_token_stride, out_head_stride;
  int64_t block_stride, token_stride;
  const int32_t* table;  // [slots, max_blocks]
  int64_t table_stride;  // elements
  const int32_t* row_slot;
  const int32_t* query_start;
  const int32_t* seq_len;
  int32_t rows;
  int32_t slots;
  int32_t columns;  // of the table
  int32_t blocks;
  int32_t block_size;
  int32_t tokens;
  int32_t heads;
  int32_t width;  // W
  int32_t rank;   // C
  float scale;

  // A row of the step; without tokens where nothing of it is to be computed.
  struct Row {
    int32_t slot;
    int32_t first;  // token
    int32_t tokens;
    int32_t length;
  };
  __device__ __forceinline__ Row RowAt(int r) const {
    Row row{row_slot[r], query_start[r], 0, seq_len[r]};
    const int count = query_start[r + 1] - row.first;
    const bool room = row.length <= static_cast<int64_t>(columns) * block_size;
    const bool good = row.slot >= 0 && row.slot < slots && row.first >= 0 && row.first <= tokens &&
                      count <= tokens - row.first && row.length >= count;
    if (good && room) row.tokens = count;
    return row;
  }

  // Where the vector of a row's token lies; null where its block does not exist.
  __device__ __forceinline__ const char* VectorAt(const Row& row, int key) const {
    const int entry = key / block_size;
    const int32_t block = table[row.slot * table_stride + entry];
    if (block < 0 || block >= blocks) return nullptr;
    return cache + block * block_stride + (key - entry * block_size) * token_stride;
  }
};

// For bfloat16 and float16 with widths of whole steps of 16 and rows on 16 bytes.
inline constexpr int kLatentStep = 16;
inline constexpr int kMaxTileWidth = 576;
inline constexpr int kMaxTileRank = 512;
inline constexpr int kMaxTileRows = 2048;  // of a step: their tiles take shared memory
Status LaunchLatentTiles(DType dtype, const LatentParams& p, const DeviceFacts& facts,
                         cudaStream_t stream);

}  // namespace octavo::cuda

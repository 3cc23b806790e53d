// Which tile a product takes and in what order its tiles come: arithmetic of the host, tested
// without a GPU.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace octavo::cuda {

inline constexpr int kGemmUnit = 64;  // k of a stage: 128 bytes of a row
inline constexpr int kGemmBand = 8;   // row tiles whose x stays in L2 while the weight passes by

// The tiles, from few rows of x to many. Nothing but speed depends on which one runs.
enum class GemmTile { kLow, kMiddle, kHigh };

struct GemmTileSize {
  int rows;     // of x
  int columns;  // of out: rows of the weight
};

constexpr GemmTileSize SizeOf(GemmTile tile) {
  switch (tile) {
    case GemmTile::kLow:
      return {16, 32};
    case GemmTile::kMiddle:
      return {64, 64};
    default:
      return {128, 128};
  }
}

inline int64_t TilesOf(GemmTile tile, int64_t m, int64_t n) {
  return CeilDiv(m, SizeOf(tile).rows) * CeilDiv(n, SizeOf(tile).columns);
}

// The highest tile that keeps every multiprocessor busy.
inline GemmTile ChooseGemmTile(int64_t m, int64_t n, int multiprocessors) {
  if (m <= SizeOf(GemmTile::kLow).rows) return GemmTile::kLow;
  return TilesOf(GemmTile::kHigh, m, n) >= multiprocessors ? GemmTile::kHigh : GemmTile::kMiddle;
}

struct GemmPlace {
  int32_t row;  // tiles
  int32_t column;
};

// Tile number `index`: down a band of row tiles, then on to the next column of it.
OCTAVO_HOST_DEVICE GemmPlace PlaceOf(uint32_t index, int32_t row_tiles, int32_t column_tiles) {
  const auto of_band = static_cast<uint32_t>(kGemmBand) * static_cast<uint32_t>(column_tiles);
  const auto band = static_cast<int32_t>(index / of_band);
  const auto within = static_cast<int32_t>(index - static_cast<uint32_t>(band) * of_band);
  const int32_t height = Min(kGemmBand, row_tiles - band * kGemmBand);
  const int32_t column = within / height;
  return {band * kGemmBand + within - column * height, column};
}

}  // namespace octavo::cuda

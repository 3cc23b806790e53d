// Tiles of the CUDA product of any number of rows, without a GPU.
#include <cstddef>
#include <set>
#include <utility>

#include "doctest/doctest.h"
#include "gemm/choice.h"

namespace octavo::cuda {
namespace {

TEST_CASE("every tile of a product comes once, bands of rows first") {
  for (const auto& [rows, columns] :
       {std::pair{1, 1}, {1, 9}, {7, 3}, {8, 3}, {9, 1}, {20, 5}, {33, 40}}) {
    std::set<std::pair<int, int>> seen;
    for (uint32_t i = 0; i < static_cast<uint32_t>(rows * columns); ++i) {
      const GemmPlace place = PlaceOf(i, rows, columns);
      REQUIRE(place.row >= 0);
      REQUIRE(place.row < rows);
      REQUIRE(place.column >= 0);
      REQUIRE(place.column < columns);
      CHECK(place.row / kGemmBand == static_cast<int>(i) / (kGemmBand * columns));
      seen.insert({place.row, place.column});
    }
    CHECK(seen.size() == static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns));
  }
}

TEST_CASE("the last tile of the largest grid has its place") {
  const uint32_t rows = 1u << 26, columns = 31;  // 2^30 rows of x in tiles of 16
  const GemmPlace place = PlaceOf(rows * columns - 1, static_cast<int32_t>(rows), columns);
  CHECK(place.row == static_cast<int32_t>(rows) - 1);
  CHECK(place.column == static_cast<int32_t>(columns) - 1);
}

TEST_CASE("few rows take the low tile, and the high one only where it fills the device") {
  CHECK(ChooseGemmTile(1, 4096, 132) == GemmTile::kLow);
  CHECK(ChooseGemmTile(16, 200000, 132) == GemmTile::kLow);
  CHECK(ChooseGemmTile(17, 4096, 132) == GemmTile::kMiddle);
  CHECK(ChooseGemmTile(256, 4096, 132) == GemmTile::kMiddle);
  CHECK(ChooseGemmTile(8192, 4096, 132) == GemmTile::kHigh);
  CHECK(ChooseGemmTile(128, 128 * 132, 132) == GemmTile::kHigh);
}

}  // namespace
}  // namespace octavo::cuda

// Copies between device and host memory beside the CPU's.
#include "backend.h"
#include "cpu/tensor.h"
#include "device.h"
#include "octavo/ops_tables.h"

namespace octavo::cuda {
namespace {

TensorView Bytes(void* data, int64_t count) { return TensorView::Dense(data, DType::kU8, {count}); }

TEST_CASE("CUDA copies runs of bytes as the CPU does" * doctest::skip(!HasDevice())) {
  constexpr int64_t kBlock = 1000, kBlocks = 40;  // no multiple of anything
  for (uint64_t seed = 1; seed <= Size(20u, 20u); ++seed) {
    CAPTURE(seed);
    std::mt19937_64 rng(seed);
    std::vector<unsigned char> pool(kBlock * kBlocks), memory(kBlock * kBlocks);
    for (unsigned char& b : pool) b = static_cast<unsigned char>(rng());
    for (unsigned char& b : memory) b = static_cast<unsigned char>(rng());
    std::vector<int64_t> order(kBlocks), runs;
    for (int64_t i = 0; i < kBlocks; ++i) order[static_cast<size_t>(i)] = i;
    std::shuffle(order.begin(), order.end(), rng);
    for (int64_t i = 0; i < kBlocks; ++i) {
      const auto bytes = static_cast<int64_t>(rng() % (kBlock + 1));  // at times none
      runs.insert(runs.end(), {order[static_cast<size_t>(i)] * kBlock, i * kBlock, bytes});
    }
    const DeviceMemory device(pool.data(), kBlock * kBlocks);
    std::vector<unsigned char> host = memory;
    const TensorView table = TensorView::Dense(runs.data(), DType::kI64, {kBlocks, 3});
    const bool to_pool = seed % 2 == 0;
    CheckDone(CopyRuns({Bytes(device.data(), kBlock * kBlocks),
                        Bytes(host.data(), kBlock * kBlocks), table, to_pool},
                       nullptr));
    REQUIRE(DeviceFinishes());
    REQUIRE(cpu::CopyRuns({Bytes(pool.data(), kBlock * kBlocks),
                           Bytes(memory.data(), kBlock * kBlocks), table, to_pool})
                .ok());
    CHECK(device.Bytes() == pool);
    CHECK(host == memory);
  }
}

TEST_CASE("CUDA refuses a run beyond its memory and copies nothing" * doctest::skip(!HasDevice())) {
  const DeviceMemory device(64);
  std::vector<unsigned char> host(64, 3);
  std::vector<int64_t> runs = {0, 0, 8, 60, 0, 8};
  const TensorView table = TensorView::Dense(runs.data(), DType::kI64, {2, 3});
  CHECK_FALSE(
      CopyRuns({Bytes(device.data(), 64), Bytes(host.data(), 64), table, false}, nullptr).ok());
  REQUIRE(DeviceFinishes());
  CHECK(host == std::vector<unsigned char>(64, 3));
}

}  // namespace
}  // namespace octavo::cuda

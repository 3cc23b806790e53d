// Times the wgmma product of some rows on the device, as the layers of two models call it: with the
// gate, or adding to the residual. Graph replays, weights rotating beyond L2. Prints the best tile
// and cut for each shape and number of rows beside the one that is chosen; with `all`, every one.
//
//   bench_linear [all]
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

#include "linear/linear_wgmma.h"
#include "replay.h"

namespace octavo::cuda {
namespace {

constexpr int64_t kMostWeights = int64_t{2} * 128256 * 4096;
constexpr int kSamples = 7;
constexpr int64_t kManyM[] = {16, 32, 64, 96, 128, 192, 256, 512};

struct Cell {
  const char* name;
  int64_t n, k;  // of the weight
  bool gated, add;
};
constexpr Cell kCells[] = {
    {"0.6B qkv", 4096, 1024, false, false},    {"0.6B o", 1024, 2048, false, true},
    {"0.6B gate_up", 6144, 1024, true, false}, {"0.6B down", 1024, 3072, false, true},
    {"8B qkv", 6144, 4096, false, false},      {"8B o", 4096, 4096, false, true},
    {"8B gate_up", 28672, 4096, true, false},  {"8B down", 4096, 14336, false, true},
    {"0.6B head", 151936, 1024, false, false}, {"8B head", 128256, 4096, false, false},
};

class Bench {
 public:
  Bench()
      : weights_(RandomElements(kMostWeights)),
        x_(RandomElements(kMaxWideTokens * 16384)),
        out_(RandomElements(kMaxWideTokens * int64_t{151936})) {
    Check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
  }

  double Time(const Cell& cell, int64_t m, const WideChoice& choice) {
    LinearArgs a;
    const int64_t columns = cell.gated ? cell.n / 2 : cell.n;
    a.out = TensorView::Dense(out_, DType::kBF16, {m, columns});
    a.x = TensorView::Dense(x_, DType::kBF16, {m, cell.k});
    a.weight = TensorView::Dense(weights_, DType::kBF16, {cell.n, cell.k});
    a.weight_ready = true;
    a.gate = cell.gated ? Gate::kSilu : Gate::kNone;
    a.add = cell.add;
    const double bytes = 2.0 * static_cast<double>(cell.n * cell.k);
    const int64_t copies =
        std::min(kMostWeights / (cell.n * cell.k), static_cast<int64_t>(kRotatedBytes / bytes) + 1);
    const int count = static_cast<int>(std::clamp<int64_t>(copies, 4, 64));
    return Replay(stream_, kSamples, count, [&](int i) {
      a.weight.data = weights_ + i % copies * cell.n * cell.k;
      Check(LaunchWide(a, choice, stream_));
    });
  }

 private:
  cudaStream_t stream_ = nullptr;
  uint16_t* weights_;
  uint16_t* x_;
  uint16_t* out_;
};

// Every tile that wastes less than half of itself on these rows, every cut that leaves no
// multiprocessor more than a few CTAs; a ring as deep as fits, and one that leaves room for the
// next product's CTA.
std::vector<WideChoice> Choices(const Cell& cell, int64_t m, const DeviceFacts& facts) {
  std::vector<WideChoice> found;
  for (const WideTile& tile : kWideTiles) {
    if (tile.tokens > 32 && tile.tokens >= 2 * m) continue;
    if (m > 4 * tile.tokens) continue;
    for (const int splits : {1, 2, 3, 4, 6, 8}) {
      const int64_t ctas = CeilDiv(cell.n, tile.rows) * CeilDiv(m, tile.tokens) * splits;
      if (splits > WideUnits({tile.rows, tile.tokens}, cell.k) ||
          (splits > 1 && ctas > 2 * facts.multiprocessors))
        continue;
      if (splits < 8 && ctas < facts.multiprocessors / 3) continue;
      int before = 0;
      for (const int shared :
           {facts.shared_per_block, facts.shared_per_multiprocessor / 2 - 1024}) {
        WideChoice c{tile.rows, tile.tokens, splits, 0};
        c.stages = WideStages(c, cell.k, shared);
        if (c.stages == before || WideSharedBytes(c) > shared) continue;
        before = c.stages;
        found.push_back(c);
      }
    }
  }
  return found;
}

void Run(bool all) {
  const DeviceFacts facts = CurrentDeviceFacts().value();
  Bench bench;
  std::printf("%-13s %4s %5s %6s %6s %6s %8s %7s\n", "shape", "m", "rows", "tokens", "splits",
              "stages", "us", "GB/s");
  const auto print = [](const Cell& cell, int64_t m, const WideChoice& c, double us,
                        const char* what) {
    std::printf("%-13s %4d %5d %6d %6d %6d %8.2f %7.0f %s\n", cell.name, static_cast<int>(m),
                c.rows, c.tokens, c.splits, c.stages, us,
                2e-3 * static_cast<double>(cell.n * cell.k) / us, what);
  };
  for (const Cell& cell : kCells) {
    for (const int64_t m : kManyM) {
      const WideChoice chosen =
          ChooseWide({m, cell.n, cell.k}, facts.multiprocessors, facts.shared_per_block);
      print(cell, m, chosen, bench.Time(cell, m, chosen), "chosen");
      WideChoice best;
      double least = 0.0;
      for (const WideChoice& c : Choices(cell, m, facts)) {
        const double us = bench.Time(cell, m, c);
        if (all) print(cell, m, c, us, "");
        if (least != 0.0 && us >= least) continue;
        best = c;
        least = us;
      }
      print(cell, m, best, least, "best");
    }
  }
}

}  // namespace
}  // namespace octavo::cuda

int main(int argc, char** argv) {
  octavo::cuda::Run(argc > 1 && std::strcmp(argv[1], "all") == 0);
  return 0;
}

// Times the wgmma product of some rows on the device, as the layers of three models call it: with
// the gate, or adding to the residual. Graph replays, weights rotating beyond L2. Prints the best
// tile and cut for each shape and number of rows beside the one that is chosen; with `all`, every
// one, which is what bench_fit_linear reads.
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

constexpr int64_t kMostWeights = int64_t{2} * 34816 * 5120;
constexpr int64_t kMostK = 17408, kMostN = 34816;
constexpr int kSamples = 5;
constexpr int64_t kManyM[] = {17, 32, 64, 96, 128, 192, 256, 512};

struct Cell {
  const char* name;
  int64_t n, k;  // of the weight
  bool gated, add;
};
constexpr Cell kCells[] = {
    {"0.6B-qkv", 4096, 1024, false, false},    {"0.6B-o", 1024, 2048, false, true},
    {"0.6B-gate_up", 6144, 1024, true, false}, {"0.6B-down", 1024, 3072, false, true},
    {"8B-qkv", 6144, 4096, false, false},      {"8B-o", 4096, 4096, false, true},
    {"8B-gate_up", 28672, 4096, true, false},  {"8B-down", 4096, 14336, false, true},
    {"14B-qkv", 7168, 5120, false, false},     {"14B-o", 5120, 5120, false, true},
    {"14B-gate_up", 34816, 5120, true, false}, {"14B-down", 5120, 17408, false, true},
};

class Bench {
 public:
  Bench()
      : weights_(RandomElements(kMostWeights)),
        x_(RandomElements(kMaxWideTokens * kMostK)),
        out_(RandomElements(kMaxWideTokens * kMostN)) {
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

WideProblem ProblemOf(const Cell& cell, int64_t m) { return {m, cell.n, cell.k, cell.gated}; }

// Every tile and cut that ChooseWide takes such rows to (WideIsKnown). Where there are more tiles
// than multiprocessors: a CTA for each tile, CTAs that do several, and such with as many each. A
// ring as deep as fits, and one that leaves room for the next CTA.
std::vector<WideChoice> Choices(const Cell& cell, int64_t m, const DeviceFacts& facts) {
  std::vector<WideChoice> found;
  const WideProblem problem = ProblemOf(cell, m);
  for (const WideTile& tile : kWideTiles) {
    for (int splits = 1; splits <= kMaxWideCluster; ++splits) {
      WideChoice c{tile.rows, tile.tokens, splits, 0};
      if (!WideIsKnown(c, problem, facts.multiprocessors)) continue;
      const auto tiles = static_cast<int>(WideTiles(c, problem));
      std::vector<int> clusters = {tiles};
      if (splits == 1 && tiles > facts.multiprocessors) {
        const WideClusters known = WideClustersOf(c, problem, facts.multiprocessors);
        clusters = {tiles, known.most, known.even};
      }
      for (const int many : clusters) {
        c.clusters = many;
        int before = 0;
        for (const int shared :
             {facts.shared_per_block, facts.shared_per_multiprocessor / 2 - 1024}) {
          c.stages = WideStages(c, problem, shared);
          if (c.stages == before || WideSharedBytes(c) > shared) continue;
          before = c.stages;
          found.push_back(c);
        }
      }
    }
  }
  return found;
}

void Print(const Cell& cell, int64_t m, const WideChoice& c, double us, const char* what) {
  std::printf("%-12s %4d %6d %6d %4d %3d %5d %6d %6d %6d %8d %8.2f %7.0f %s\n", cell.name,
              static_cast<int>(m), static_cast<int>(cell.n), static_cast<int>(cell.k),
              static_cast<int>(cell.gated), static_cast<int>(cell.add), c.rows, c.tokens, c.splits,
              c.stages, c.clusters, us, 2e-3 * static_cast<double>(cell.n * cell.k) / us, what);
}

void Run(bool all) {
  const DeviceFacts facts = CurrentDeviceFacts().value();
  Bench bench;
  std::printf("%-12s %4s %6s %6s %4s %3s %5s %6s %6s %6s %8s %8s %7s\n", "shape", "m", "n", "k",
              "gate", "add", "rows", "tokens", "splits", "stages", "clusters", "us", "GB/s");
  for (const Cell& cell : kCells) {
    for (const int64_t m : kManyM) {
      const WideChoice chosen =
          ChooseWide(ProblemOf(cell, m), facts.multiprocessors, facts.shared_per_block);
      Print(cell, m, chosen, bench.Time(cell, m, chosen), "chosen");
      WideChoice best;
      double least = 0.0;
      for (const WideChoice& c : Choices(cell, m, facts)) {
        const double us = bench.Time(cell, m, c);
        if (all) Print(cell, m, c, us, "tried");
        if (least != 0.0 && us >= least) continue;
        best = c;
        least = us;
      }
      Print(cell, m, best, least, "best");
      std::fflush(stdout);
    }
  }
}

}  // namespace
}  // namespace octavo::cuda

int main(int argc, char** argv) {
  octavo::cuda::Run(argc > 1 && std::strcmp(argv[1], "all") == 0);
  return 0;
}

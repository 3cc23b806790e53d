// Times paged attention on the device: graph replays of many layers, K and V rotating through a
// block-outermost pool far beyond L2. Prints microseconds a layer, the plan left out (it runs once
// a step for all layers and is timed by itself).
//
//   bench_attention [decode|prefill|all] [cell]
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "attention/call.h"
#include "replay.h"

namespace octavo::cuda {
namespace {

constexpr int64_t kBlockSize = 16, kLayers = 8;
constexpr int64_t kBlocks = 40000;
constexpr int64_t kMostElements = 2 * 8 * kBlockSize * 128;  // of a block and layer: 21 GB in all
constexpr int64_t kMostQueries = 8192 * 32 * 128;            // elements
constexpr int kSamples = 15;

struct Heads {
  int64_t query, kv, dim;

  int64_t layer_elements() const { return 2 * kv * kBlockSize * dim; }
  double token_bytes() const { return 4.0 * static_cast<double>(kv * dim); }
};
constexpr Heads kQwen{16, 8, 128};
constexpr Heads kLlama{32, 8, 128}, kLlamaSmall{32, 8, 64}, kGemma{8, 4, 256};

// Lengths are drawn between the shortest, where there is one, and `length`.
struct Rows {
  int rows, queries, length;
  int shortest = 0;
};

// Microseconds of others on one H200; 0: not measured.
struct Cell {
  const char* name;
  Heads heads;
  Rows many;            // of one length
  Rows decode;          // behind them: of one query each
  double peer;          // the best peer
  double probe;         // a kernel of ours alone, on mma.sync
  double wgmma = 0.0;   // and on wgmma
  double portable = 0;  // the best peer on mma.sync
};

constexpr Cell kDecodeCells[] = {
    {"1x1k", kLlama, {}, {1, 1, 1024}, 8.5, 6.7},
    {"1x8k", kLlama, {}, {1, 1, 8192}, 16.5, 13.8},
    {"1x32k", kLlama, {}, {1, 1, 32768}, 44.0, 37.4},
    {"8x1k", kLlama, {}, {8, 1, 1024}, 15.0, 13.6},
    {"8x8k", kLlama, {}, {8, 1, 8192}, 74.1, 66.9},
    {"64x1k", kLlama, {}, {64, 1, 1024}, 75.4, 69.2},
    {"64x8k", kLlama, {}, {64, 1, 8192}, 490.6, 475.9},
    {"256x1k", kLlama, {}, {256, 1, 1024}, 264.9, 250.8},
    {"256x576", kQwen, {}, {256, 1, 576}, 0, 0},
    {"256 mixed", kQwen, {}, {256, 1, 940, 200}, 0, 0},
    {"128 mixed", kQwen, {}, {128, 1, 940, 200}, 0, 0},
    {"96 mixed", kQwen, {}, {96, 1, 940, 200}, 0, 0},
    {"64 mixed", kQwen, {}, {64, 1, 940, 200}, 0, 0},
    {"32 mixed", kQwen, {}, {32, 1, 940, 200}, 0, 0},
    {"24 mixed", kQwen, {}, {24, 1, 940, 200}, 0, 0},
    {"64 skewed", kLlama, {}, {64, 1, 16384, 16}, 0, 0},
    {"24 skewed", kLlama, {}, {24, 1, 16384, 16}, 0, 0},
};
constexpr Cell kPrefillCells[] = {
    {"1x8k", kLlama, {1, 8192, 8192}, {}, 951, 1544, 872, 1699},
    {"4x2k", kLlama, {4, 2048, 2048}, {}, 291, 419, 278, 469},
    {"16x512@4k", kLlama, {16, 512, 4608}, {}, 956, 1759, 1004, 1829},
    {"1x2k@32k", kLlama, {1, 2048, 34816}, {}, 1730, 3265, 2000, 3271},
    {"1x2k", kLlama, {1, 2048, 2048}, {}, 0, 121, 80},
    {"1x8k d64", kLlamaSmall, {1, 8192, 8192}, {}, 0, 0},
    {"1x8k d256", kGemma, {1, 8192, 8192}, {}, 436, 0, 0, 1160},
    {"2k+64@4k", kLlama, {1, 2048, 2048}, {64, 1, 4096}, 349.9, 0},
};

class Bench {
 public:
  Bench() {
    Check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
    pool_ = RandomElements(kBlocks * kLayers * kMostElements);
    q_ = RandomElements(kMostQueries);
    out_ = Allocate<uint16_t>(kMostQueries);
    std::vector<int32_t> blocks(kBlocks);
    std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), std::mt19937(7));
    blocks.insert(blocks.end(), blocks.begin(), blocks.end());
    table_ = Upload(blocks);
  }

  double tokens() const { return tokens_; }

  bool has_wgmma() const {
    const Result<DeviceFacts> facts = CurrentDeviceFacts();
    return facts.ok() && facts.value().wgmma;
  }

  // Microseconds a layer; with `plan_us`, of a plan too.
  double Time(const Cell& cell, const AttentionOptions& options, const AttentionKernels& kernels,
              double* plan_us) {
    const int64_t columns = Max(cell.many.length, cell.decode.length) / kBlockSize;
    const int64_t rows = cell.many.rows + cell.decode.rows, blocks = rows * columns;
    PagedAttentionArgs a = Args(cell, columns);
    AttentionCall call;
    Check(ResolveCall(a, options, kernels, &call));
    const int64_t bytes = LayOutPlan(nullptr, call.shape, call.capacity, cell.heads.dim).bytes;
    auto* memory = Allocate<char>(bytes);
    const double cell_bytes = cell.heads.token_bytes() * cell.decode.rows * cell.decode.length;
    const int layers =
        cell.many.rows > 0
            ? 2
            : static_cast<int>(std::clamp(2 * kRotatedBytes / cell_bytes, 16.0, 64.0));
    const auto layer = [&](int i) {
      a.cache.data = static_cast<uint16_t*>(pool_) + i % kLayers * cell.heads.layer_elements();
      a.block_table.data = table_ + i * blocks % kBlocks;
      call.plan_ready = i > 0;
      Check(EnqueueLayer(a, call, memory, stream_));
    };
    if (plan_us != nullptr) {
      *plan_us =
          Replay(stream_, kSamples, 16, [&](int) { Check(EnqueuePlan(a, call, memory, stream_)); });
    }
    Check(EnqueuePlan(a, call, memory, stream_));
    const double us = Replay(stream_, kSamples, layers, layer);
    Check(cudaFree(memory), "cudaFree");
    Check(cudaFree(a.query_start.data), "cudaFree");
    Check(cudaFree(a.seq_len.data), "cudaFree");
    Check(cudaFree(a.row_slot.data), "cudaFree");
    return us;
  }

 private:
  // Rows of many queries first; every row has `columns` blocks.
  PagedAttentionArgs Args(const Cell& cell, int64_t columns) {
    std::vector<int32_t> start{0}, length;
    std::mt19937 rng(5);
    for (const Rows& r : {cell.many, cell.decode}) {
      for (int i = 0; i < r.rows; ++i) {
        start.push_back(start.back() + r.queries);
        length.push_back(
            r.shortest == 0 ? r.length : std::uniform_int_distribution(r.shortest, r.length)(rng));
      }
    }
    tokens_ = std::accumulate(length.begin(), length.end(), 0.0);
    std::vector<int32_t> slot(length.size());
    std::iota(slot.begin(), slot.end(), 0);
    const Heads& h = cell.heads;
    const auto rows = static_cast<int64_t>(length.size());
    PagedAttentionArgs a;
    a.q = TensorView::Dense(q_, DType::kBF16, {start.back(), h.query, h.dim});
    a.out = TensorView::Dense(out_, DType::kBF16, {start.back(), h.query, h.dim});
    a.cache = TensorView::Dense(pool_, DType::kBF16, {kBlocks, 2, h.kv, kBlockSize, h.dim});
    a.cache.stride[0] = kLayers * h.layer_elements();
    a.block_table = TensorView::Dense(table_, DType::kI32, {rows, columns});
    a.query_start = TensorView::Dense(Upload(start), DType::kI32, {rows + 1});
    a.seq_len = TensorView::Dense(Upload(length), DType::kI32, {rows});
    a.row_slot = TensorView::Dense(Upload(slot), DType::kI32, {rows});
    a.scale = 1.0f / std::sqrt(static_cast<float>(h.dim));
    return a;
  }

  cudaStream_t stream_ = nullptr;
  void* pool_ = nullptr;
  void* q_ = nullptr;
  void* out_ = nullptr;
  int32_t* table_ = nullptr;
  double tokens_ = 0.0;  // in the cache, of the call that was timed last
};

bool Wanted(const Cell& cell, const std::string& name) { return name.empty() || name == cell.name; }

void RunDecode(Bench& bench, const std::string& name) {
  std::printf(
      "decode, us a layer: 8 KV heads, group 4 (2 of rows with 576 or mixed lengths), d128, bf16, "
      "blocks of 16\n");
  std::printf("%-10s %8s %8s %8s %8s %8s %8s %6s %6s %8s\n", "cell", "auto", "wide", "pair",
              "fixed", "no pdl", "plan", "peer", "probe", "GB/s");
  for (const Cell& cell : kDecodeCells) {
    if (!Wanted(cell, name)) continue;
    AttentionOptions options;
    options.max_queries = 1;
    double plan = 0.0;
    const double best = bench.Time(cell, options, {}, &plan);
    const double wide = bench.Time(cell, options, {DecodeCtaShape::kWide}, nullptr);
    const double pair = bench.Time(cell, options, {DecodeCtaShape::kPair}, nullptr);
    AttentionOptions fixed = options;
    fixed.fixed_split = true;
    const double invariant = bench.Time(cell, fixed, {}, nullptr);
    AttentionOptions serial = options;
    serial.dependent_launch = false;
    const double no_pdl = bench.Time(cell, serial, {}, nullptr);
    std::printf("%-10s %8.2f %8.2f %8.2f %8.2f %8.2f %8.2f %6.1f %6.1f %8.0f\n", cell.name, best,
                wide, pair, invariant, no_pdl, plan, cell.peer, cell.probe,
                cell.heads.token_bytes() * bench.tokens() / best / 1e3);
  }
}

// A number that is 0 where there is none.
void PrintUs(double us) {
  if (us > 0.0) {
    std::printf(" %9.1f", us);
  } else {
    std::printf(" %9s", "-");
  }
}

void RunPrefill(Bench& bench, const std::string& name) {
  std::printf(
      "prefill, us a layer: bf16, blocks of 16; a decode kernel finds the rows of one query\n");
  std::printf("%-10s %9s %8s %9s %8s %9s %9s %9s %9s\n", "cell", "portable", "TFLOP/s", "wgmma",
              "TFLOP/s", "best peer", "wg probe", "mma peer", "mma probe");
  for (const Cell& cell : kPrefillCells) {
    if (!Wanted(cell, name)) continue;
    const double q = cell.many.queries;
    const double pairs = cell.many.rows * (q * (cell.many.length - q) + q * (q + 1) / 2);
    const double teraflop =
        4 * pairs * static_cast<double>(cell.heads.query * cell.heads.dim) / 1e6;
    AttentionKernels kernels{.prefill = PrefillKernel::kPortable};
    const double portable = bench.Time(cell, {}, kernels, nullptr);
    std::printf("%-10s %9.1f %8.0f", cell.name, portable, teraflop / portable);
    if (bench.has_wgmma()) {
      kernels.prefill = PrefillKernel::kWgmma;
      const double wgmma = bench.Time(cell, {}, kernels, nullptr);
      std::printf(" %9.1f %8.0f", wgmma, teraflop / wgmma);
    } else {
      std::printf(" %9s %8s", "-", "-");
    }
    for (const double us : {cell.peer, cell.wgmma, cell.portable, cell.probe}) PrintUs(us);
    std::printf("\n");
  }
}

}  // namespace
}  // namespace octavo::cuda

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "all", cell = argc > 2 ? argv[2] : "";
  octavo::cuda::Bench bench;
  if (what != "prefill") octavo::cuda::RunDecode(bench, cell);
  if (what != "decode") octavo::cuda::RunPrefill(bench, cell);
  return 0;
}

// Times what stands between attention and the next attention on the device, as the layers of three
// models call it: products on wgmma with a norm's kernel between them, and with half of the norm in
// each (docs/adr/0034). Graph replays, weights rotating beyond L2. One line for each number of
// rows: o, norm, gate and up; down, norm, qkv; and all of them one after another. Microseconds.
//
//   bench_half_norm
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <vector>

#include "linear/linear_wgmma.h"
#include "octavo/cuda_ops.h"
#include "replay.h"

namespace octavo::cuda {
namespace {

constexpr int64_t kMostElements = INT64_C(350000000);  // of the weights of a layer
constexpr int kSamples = 7, kLayers = 24;
constexpr int64_t kManyM[] = {17, 32, 64, 96, 128, 192, 256};
constexpr int64_t kMostM = 256, kMostColumns = 34816;

struct Model {
  const char* name;
  int64_t hidden, qkv, attended, inner;
};
constexpr Model kModels[] = {{"0.6B", 1024, 4096, 2048, 3072},
                             {"8B", 4096, 6144, 4096, 14336},
                             {"14B", 5120, 7168, 5120, 17408}};

// The weights of a layer, one behind the other.
struct Weights {
  uint16_t *o, *gate_up, *down, *qkv;

  Weights(const Model& model, uint16_t* at) {
    o = at;
    gate_up = o + model.hidden * model.attended;
    down = gate_up + 2 * model.inner * model.hidden;
    qkv = down + model.hidden * model.inner;
  }
  static int64_t Elements(const Model& m) { return m.hidden * (m.attended + 3 * m.inner + m.qkv); }
};

class Bench {
 public:
  Bench()
      : weights_(RandomElements(kMostElements)),
        norm_(RandomElements(kMostColumns)),
        attended_(RandomElements(kMostM * kMostColumns)),
        residual_(RandomElements(kMostM * kMostColumns)),
        normed_(RandomElements(kMostM * kMostColumns)),
        inner_(RandomElements(kMostM * kMostColumns)),
        qkv_(RandomElements(kMostM * kMostColumns)),
        squares_(Allocate<float>(kMostM * kMostColumns / kSquaresColumns)) {
    Check(cudaMemset(squares_, 0, kMostM * kMostColumns / kSquaresColumns * sizeof(float)),
          "memset");
    Check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
  }

  // Of a layer's parts, with the norm in halves or not.
  double Time(const Model& model, int64_t m, bool first, bool second, bool halves) {
    const int64_t elements = Weights::Elements(model);
    const int64_t copies = std::clamp<int64_t>(
        static_cast<int64_t>(kRotatedBytes / 2 / static_cast<double>(elements)) + 1, 1,
        kMostElements / elements);
    return Replay(stream_, kSamples, kLayers, [&](int i) {
      const Weights w(model, weights_ + i % copies * elements);
      const int64_t hidden = model.hidden, inner = model.inner;
      if (first) {
        Add(m, w.o, hidden, attended_, model.attended, halves);
        Take(m, w.gate_up, 2 * inner, hidden, Gate::kSilu, inner_, halves);
      }
      if (second) {
        Add(m, w.down, hidden, inner_, inner, halves);
        Take(m, w.qkv, model.qkv, hidden, Gate::kNone, qkv_, halves);
      }
    });
  }

 private:
  static TensorView View(const void* at, DType dtype, int64_t rows, int64_t columns) {
    return TensorView::Dense(const_cast<void*>(at), dtype, {rows, columns});
  }
  static TensorView View(const uint16_t* at, int64_t rows, int64_t columns) {
    return View(at, DType::kBF16, rows, columns);
  }
  TensorView Squares(int64_t m, int64_t hidden) const {
    return View(squares_, DType::kF32, m, SquaresOf(hidden));
  }
  TensorView NormWeight(int64_t hidden) const {
    return TensorView::Dense(norm_, DType::kBF16, {hidden});
  }

  // The residual += x weight^T.
  void Add(int64_t m, const uint16_t* weight, int64_t hidden, const uint16_t* x, int64_t k,
           bool halves) {
    LinearArgs a{View(residual_, m, hidden), View(x, m, k), View(weight, hidden, k), std::nullopt,
                 true};
    a.add = true;
    if (halves) {
      a.leaves = HalfNorm{NormWeight(hidden), 0.0f, View(normed_, m, hidden), Squares(m, hidden)};
    }
    Check(Linear(a, stream_));
  }

  // A product of the residual's norm.
  void Take(int64_t m, const uint16_t* weight, int64_t rows, int64_t hidden, Gate gate,
            uint16_t* out, bool halves) {
    if (!halves) {
      Check(RmsNorm({View(normed_, m, hidden), View(residual_, m, hidden), NormWeight(hidden)},
                    stream_));
    }
    const int64_t columns = gate == Gate::kNone ? rows : rows / 2;
    LinearArgs a{View(out, m, columns), View(normed_, m, hidden), View(weight, rows, hidden),
                 std::nullopt, true};
    a.gate = gate;
    if (halves) a.squares = Squares(m, hidden);
    Check(Linear(a, stream_));
  }

  cudaStream_t stream_ = nullptr;
  uint16_t *weights_, *norm_, *attended_, *residual_, *normed_, *inner_, *qkv_;
  float* squares_;
};

void Run() {
  Bench bench;
  std::printf("%-5s %4s | %8s %8s %7s | %8s %8s %7s | %8s %8s %7s\n", "", "", "o..up", "halves", "",
              "down..qkv", "halves", "", "layer", "halves", "");
  for (const Model& model : kModels) {
    for (const int64_t m : kManyM) {
      std::printf("%-5s %4d", model.name, static_cast<int>(m));
      for (const auto& [first, second] : {std::pair{true, false}, {false, true}, {true, true}}) {
        const double kernel = bench.Time(model, m, first, second, false);
        const double halves = bench.Time(model, m, first, second, true);
        std::printf(" | %8.2f %8.2f %+7.2f", kernel, halves, halves - kernel);
      }
      std::printf("\n");
      std::fflush(stdout);
    }
  }
}

}  // namespace
}  // namespace octavo::cuda

int main() {
  octavo::cuda::Run();
  return 0;
}

// Attention problems for the tests on a GPU: random rows over a pool whose dead slots, gaps and
// outputs are poisoned, with the answer in float64.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <vector>

#include "attention/call.h"
#include "cpu/tensor.h"
#include "device.h"
#include "doctest/doctest.h"
#include "octavo/cuda_attention.h"

namespace octavo::cuda {

// Whether the wgmma prefill kernel runs here.
inline bool HasWgmma() {
  if (!HasDevice()) return false;
  const Result<DeviceFacts> facts = CurrentDeviceFacts();
  return facts.ok() && facts.value().wgmma;
}

struct Row {
  int32_t queries;
  int32_t length;  // 0: a row that does nothing, though it may own query tokens
  // The row's first blocks, this many if it has them, are those of every row of the family.
  int32_t family = 0;
  int32_t family_blocks = 0;
};

// Relative L2 error of one head's output: rounding of the weights and of the output.
inline double Tolerance(DType dtype) {
  return dtype == DType::kBF16 ? 8e-3 : dtype == DType::kF16 ? 1e-3 : 1e-5;
}

struct Problem {
  DType dtype = DType::kBF16;
  int64_t head_dim = 128;
  int64_t kv_heads = 2;
  int64_t group = 4;
  int64_t block_size = 16;
  std::vector<Row> rows;
  int64_t window = 0;
  bool chunked = false;
  float soft_cap = 0.0f;
  bool sinks = false;
  bool fp8 = false;  // the cache
  float k_scale = 1.0f, v_scale = 1.0f;
  double q_size = 1.0;
  int64_t gap = 0;           // elements between rows of q and out
  int64_t spare_tokens = 0;  // of q, behind the last row's
  uint64_t seed = 1;
  AttentionOptions options;
  PrefillKernel prefill = PrefillKernel::kAuto;
  PrefixSharing sharing = PrefixSharing::kAuto;  // heeded beside a prefill kernel that was chosen

  int64_t tokens() const {
    int64_t n = spare_tokens;
    for (const Row& r : rows) n += r.queries;
    return n;
  }
};

// A problem's tensors in host memory, and on the device.
class Instance {
 public:
  explicit Instance(const Problem& p);

  PagedAttentionArgs HostArgs() const { return Args(q.view(), out.view(), cache.view(), nullptr); }
  PagedAttentionArgs DeviceArgs() const;
  // Plans and runs on `stream`.
  void Enqueue(const AttentionPlan& plan, Stream stream) const;
  // Runs once on the default stream and copies `out` back.
  void Run();
  // The bytes of `out` on the device.
  std::vector<unsigned char> DeviceOut() const { return device_out.Bytes(); }
  // Checks `out` against the answer: every live row close, nothing else written.
  void CheckOut(const std::vector<double>& answer, double tolerance) const;
  // The answer in float64, [tokens, heads, dim]; NaN where nothing may be written.
  std::vector<double> Answer() const;
  // Those tiles of the last run's plan whose keys are shared.
  std::vector<PrefillTile> SharedTiles() const;
  // Which kernels run, as the problem asks for.
  AttentionCall Resolve() const;

  Problem problem;
  cpu::Tensor q, out, cache;
  std::vector<int32_t> table, row_slot, query_start, seq_len;
  std::vector<float> sinks;
  int64_t max_blocks = 0;
  DeviceMemory device_q, device_out, device_cache, device_table, device_row_slot,
      device_query_start, device_seq_len, device_sinks, device_plan;
  AttentionPlan plan;

 private:
  PagedAttentionArgs Args(TensorView q_view, TensorView out_view, TensorView cache_view,
                          const Instance* device) const;
  // Keys (kv 0) or values of a row, as they are scaled.
  std::vector<double> Gather(size_t row, int64_t head, int64_t kv) const;
  // The answer of one token of a row and one head, [dim], of the keys and values of its group.
  void AnswerQuery(size_t row, int32_t token, int64_t head, const std::vector<double>& k,
                   const std::vector<double>& v, double* to) const;
};

// An instance's plan and layer as a graph, to be replayed after what it reads on the device has
// changed.
class CapturedStep {
 public:
  explicit CapturedStep(const Instance& instance);
  CapturedStep(const CapturedStep&) = delete;
  CapturedStep& operator=(const CapturedStep&) = delete;
  ~CapturedStep();

  // Over a poisoned `out` of the instance; checks that the bytes of `out` are these.
  void CheckReplays(Instance* instance, const std::vector<unsigned char>& bytes) const;

 private:
  cudaStream_t stream_ = nullptr;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t exec_ = nullptr;
};

}  // namespace octavo::cuda

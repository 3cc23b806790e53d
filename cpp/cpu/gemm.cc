// A product of any number of rows whose elements do not depend on how many there are. Few rows are
// linear.cc's; more are cut into blocks whose rows, as float32, stay in a core's second cache while
// the weight passes by. Both sum an element in one order (isa/gemm.h).
#include "base/ops_check.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/scratch.h"
#include "octavo/ops.h"
#include "octavo/ops_invariant.h"

namespace octavo::cpu {
namespace {

// Up to here reading the weight as it lies beats widening it first.
constexpr int64_t kFewRows = 8;
constexpr int64_t kBlockFloats = 128 * 1024;  // of x in a block: half a megabyte
constexpr int64_t kMostBlockRows = 96;
constexpr int64_t kWeightStep = 64;  // rows of the weight that pay for a block's widening
constexpr int64_t kTasksPerThread = 4;
constexpr int64_t kCapGrain = 16384;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

Status Gemm(const GemmArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  const int64_t m = a.x.shape[0], n = a.weight.shape[0], k = a.x.shape[1];
  if (m <= kFewRows) return Linear({a.out, a.x, a.weight, a.bias});
  if (n == 0) return Status::Ok();
  const Kernels& kernels = ActiveKernels();
  const int64_t fit = kBlockFloats / std::max<int64_t>(1, k) / kGemmStep * kGemmStep;
  const int64_t block = std::clamp<int64_t>(fit, kGemmStep, kMostBlockRows);
  const int64_t blocks = CeilDiv(m, block);
  // A task is a block of x and a run of weight rows: as long a run as leaves every thread several.
  const int64_t runs = std::max<int64_t>(1, CeilDiv(kTasksPerThread * NumThreads(), blocks));
  const int64_t run = std::max(kWeightStep, CeilDiv(CeilDiv(n, runs), kWeightStep) * kWeightStep);
  const LinearRowsArgs all = ProductOf(a);
  ParallelFor(blocks * CeilDiv(n, run), [&](int64_t task) {
    // Neighbouring tasks read the same weights.
    const int64_t first = task % blocks * block, begin = task / blocks * run;
    LinearRowsArgs rows = all;
    rows.inputs = std::min(block, m - first);
    rows.x = RowOf(a.x, first);
    rows.out = RowOf(a.out, first);
    const int64_t bytes =
        kernels.gemm_scratch(rows.inputs, k) * static_cast<int64_t>(sizeof(float));
    kernels.gemm_block(rows, begin, std::min(n, begin + run),
                       static_cast<float*>(ThreadScratch(ScratchUse::kTask, bytes)));
  });
  return Status::Ok();
}

Status SoftCap(const SoftCapArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  // A row is cut as well: decode has few and long ones.
  const int64_t n = a.x.shape[1], pieces = CeilDiv(n, kCapGrain);
  const Kernels& kernels = ActiveKernels();
  const auto piece = [&](int64_t i) {
    const int64_t begin = i % pieces * kCapGrain;
    char* const row = static_cast<char*>(RowOf(a.x, i / pieces));
    kernels.soft_cap(a.x.dtype, row + begin * DTypeSize(a.x.dtype), std::min(kCapGrain, n - begin),
                     a.cap);
  };
  ParallelFor(a.x.shape[0] * pieces, piece);
  return Status::Ok();
}

}  // namespace octavo::cpu

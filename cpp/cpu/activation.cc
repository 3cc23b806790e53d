#include "base/ops_check.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "octavo/ops.h"

namespace octavo::cpu {
namespace {

using GatedFn = void (*)(DType, void* out, const void* gate, const void* up, int64_t n);

// A row is cut into pieces as well: decode has few rows and wide ones.
constexpr int64_t kPiece = 4096;

Status Gated(const GatedActivationArgs& a, GatedFn fn) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  const int64_t n = a.out.shape[1];
  const int64_t pieces = (n + kPiece - 1) / kPiece;
  const int64_t size = DTypeSize(a.out.dtype);
  const int64_t grain = std::max<int64_t>(1, GrainOfRows(std::min(n, kPiece)) / 2);
  ParallelRanges(a.out.shape[0] * pieces, grain, NumThreads(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % pieces * kPiece;
      const char* gate = static_cast<const char*>(RowOf(a.gate_up, i / pieces)) + first * size;
      fn(a.out.dtype, static_cast<char*>(RowOf(a.out, i / pieces)) + first * size, gate,
         gate + n * size, std::min(kPiece, n - first));
    }
  });
  return Status::Ok();
}

}  // namespace

Status SiluMul(const GatedActivationArgs& a) { return Gated(a, ActiveKernels().silu_mul); }

Status GeluTanhMul(const GatedActivationArgs& a) { return Gated(a, ActiveKernels().gelu_tanh_mul); }

}  // namespace octavo::cpu

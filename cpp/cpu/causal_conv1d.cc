#include "base/ops_check.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "octavo/ops_state.h"

namespace octavo::cpu {
namespace {

// Channels are cut in runs of this many: whole vectors of every instruction set, whole cache lines
// of every dtype.
constexpr int64_t kTile = 64;

const void* BlockOf(const TensorView& state, int32_t block) {
  return block < 0 ? nullptr : RowOf(state, block);
}

}  // namespace

// Tasks are runs of channels: a row's tokens then stay in order and its state in registers.
Status CausalConv1d(const CausalConv1dArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  OCTAVO_RETURN_IF_ERROR(ValidateIndices(a));
  const Kernels& k = ActiveKernels();
  const int64_t channels = a.x.shape[1], tiles = (channels + kTile - 1) / kTile;
  const int32_t* start = a.query_start.ptr<int32_t>();
  ConvRow shared;
  shared.dtype = a.x.dtype;
  shared.weight = a.weight.data;
  shared.bias = a.bias.has_value() ? a.bias->data : nullptr;
  shared.taps = a.weight.shape[1];
  shared.weight_stride = a.weight.stride[0];
  shared.x_stride = a.x.stride[0];
  shared.out_stride = a.out.stride[0];
  shared.state_stride = a.state.stride[1];
  const int64_t grain = GrainOfRows(kTile * shared.taps * a.x.shape[0]);
  ParallelRanges(tiles, grain, NumThreads(), [&](int64_t begin, int64_t end) {
    for (int64_t r = 0; r < a.source.shape[0]; ++r) {
      const int32_t target = a.target.ptr<int32_t>()[r];
      if (target < 0 || start[r] == start[r + 1]) continue;
      ConvRow row = shared;
      row.tokens = start[r + 1] - start[r];
      row.x = RowOf(a.x, start[r]);
      row.out = RowOf(a.out, start[r]);
      row.before = BlockOf(a.state, a.source.ptr<int32_t>()[r]);
      row.after = RowOf(a.state, target);
      k.conv_row(row, begin * kTile, std::min(end * kTile, channels));
    }
  });
  return Status::Ok();
}

}  // namespace octavo::cpu

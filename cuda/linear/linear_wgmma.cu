// Host side of the product of some rows on wgmma: its tensor maps.
#include "base/ops_check.h"
#include "common/rows.h"
#include "common/tensor_map.h"
#include "linear/linear_wgmma.h"

namespace octavo::cuda {
namespace {

constexpr int64_t kHalf = 8;  // rows of the gate, or of what they open, side by side in a tile

// [K / 64, N / 16, 2, 8, 64]: the rows in the order of the tiles.
TensorView WeightOf(const LinearArgs& a) {
  TensorView v = a.weight;
  const int64_t n = a.weight.shape[0], row = a.weight.stride[0];
  const int64_t open = a.gate == Gate::kNone ? kHalf : n / 2;
  v.rank = kMapRank;
  const int64_t shape[kMapRank] = {a.weight.shape[1] / kWideBlock, n / (2 * kHalf), 2, kHalf,
                                   kWideBlock};
  const int64_t groups = a.gate == Gate::kNone ? 2 * kHalf : kHalf;
  const int64_t stride[kMapRank] = {kWideBlock, groups * row, open * row, row, 1};
  for (int i = 0; i < kMapRank; ++i) {
    v.shape[i] = shape[i];
    v.stride[i] = stride[i];
  }
  return v;
}

TensorView InputsOf(const LinearArgs& a) {
  TensorView v = a.x;
  v.rank = kMapRank;
  const int64_t shape[kMapRank] = {a.x.shape[1] / kWideBlock, 1, 1, a.x.shape[0], kWideBlock};
  const int64_t stride[kMapRank] = {kWideBlock, 0, 0, a.x.stride[0], 1};
  for (int i = 0; i < kMapRank; ++i) {
    v.shape[i] = shape[i];
    v.stride[i] = stride[i];
  }
  return v;
}

bool TakesLeaves(const HalfNorm& half) {
  return WideRows(half.weight, kHalf) && WideRows(half.scaled, kHalf);
}

void PutHalfNorms(const LinearArgs& a, WideParams* p) {
  p->eps = a.eps;
  if (a.squares.has_value()) {
    p->squares = a.squares->ptr<float>();
    p->squares_stride = a.squares->stride[0];
    p->squares_count = static_cast<int32_t>(a.x.shape[1] / kSquaresColumns);
  }
  if (!a.leaves.has_value()) return;
  p->scaled = a.leaves->scaled.ptr<char>();
  p->scaled_stride = StridesOf(a.leaves->scaled).token;
  p->norm = a.leaves->weight.ptr<char>();
  p->norm_offset = a.leaves->offset;
  p->left = a.leaves->squares.ptr<float>();
  p->left_stride = a.leaves->squares.stride[0];
}

}  // namespace

bool TakesWide(const LinearArgs& a) {
  const int64_t k = a.x.shape[1], n = a.weight.shape[0];
  if (a.norm.has_value() || k == 0 || k % kWideBlock != 0 || n % (2 * kHalf) != 0) return false;
  if (!WideRows(a.x, k) || !WideRows(a.weight, k) || !WideRows(a.out, kHalf)) return false;
  if (a.bias.has_value() && !WideRows(*a.bias, kHalf)) return false;
  if (a.squares.has_value() && !WideRows(*a.squares, SquaresOf(k))) return false;
  if (a.leaves.has_value() && !TakesLeaves(*a.leaves)) return false;
  return FitsTensorMap(WeightOf(a)) && FitsTensorMap(InputsOf(a));
}

Status LaunchWide(const LinearArgs& a, const WideChoice& choice, Stream stream) {
  WideParams p{};
  const auto groups = static_cast<uint32_t>(choice.rows / (2 * kHalf));
  p.tile_tokens = WideTileTokens(a.x.shape[0], choice.tokens);
  const auto tokens = static_cast<uint32_t>(p.tile_tokens);
  const auto blocks = static_cast<uint32_t>(WideBlocks(choice.rows, choice.tokens));
  OCTAVO_RETURN_IF_ERROR(
      EncodeTensorMap(WeightOf(a), {blocks, groups, 2, kHalf, kWideBlock}, &p.weight));
  OCTAVO_RETURN_IF_ERROR(EncodeTensorMap(InputsOf(a), {blocks, 1, 1, tokens, kWideBlock}, &p.x));
  p.out = a.out.ptr<char>();
  p.bias = a.bias.has_value() ? a.bias->ptr<char>() : nullptr;
  p.out_stride = StridesOf(a.out).token;
  p.m = static_cast<int32_t>(a.x.shape[0]);
  p.n = static_cast<int32_t>(a.out.shape[1]);
  p.units = static_cast<int32_t>(WideUnits(choice, a.x.shape[1]));
  p.stages = choice.stages;
  p.splits = choice.splits;
  p.token_tiles = CeilDiv(p.m, choice.tokens);
  p.tiles = static_cast<int32_t>(CeilDiv<int64_t>(a.weight.shape[0], choice.rows)) * p.token_tiles;
  p.weight_ready = a.weight_ready;
  p.add = a.add;
  p.gate = a.gate;
  PutHalfNorms(a, &p);
  return a.x.dtype == DType::kF16 ? LaunchWideOf<__half>(choice, p, stream)
                                  : LaunchWideOf<__nv_bfloat16>(choice, p, stream);
}

}  // namespace octavo::cuda

// What the ops of recurrent layers ask of their arguments: shapes, dtypes and strides, then the
// numbers inside index tensors.
#include <cmath>
#include <string>

#include "base/ops_check.h"
#include "base/ops_parts.h"
#include "octavo/ops_state.h"

namespace octavo {
namespace {

constexpr int64_t kMaxTaps = 8;
constexpr int64_t kMaxStateSize = 1024;

// [n] of x's dtype.
Status CheckWeights(const OpTensor& t, const OpTensor& x, int64_t n) {
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(t, x));
  return CheckShape(t, {n});
}

Status CheckRows(const char* op, const TensorView& query_start, const TensorView& source,
                 const TensorView& target) {
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "source", source, DType::kI32, kAnyExtent));
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "target", target, DType::kI32, source.shape[0]));
  return CheckColumn(op, "query_start", query_start, DType::kI32, source.shape[0] + 1);
}

std::string At(const char* name, int64_t index, int64_t value) {
  return std::string(name) + "[" + std::to_string(index) + "] is " + std::to_string(value);
}

Status CheckStarts(const char* op, const TensorView& query_start, int64_t tokens) {
  const int32_t* start = query_start.ptr<int32_t>();
  const int64_t rows = query_start.shape[0] - 1;
  bool good = start[0] == 0 && start[rows] <= tokens;
  for (int64_t r = 0; r < rows; ++r) good = good && start[r] <= start[r + 1];
  if (good) return Status::Ok();
  return InvalidOp(op, "query_start must start at 0, never fall and end at " +
                           std::to_string(tokens) + " or less");
}

Status CheckBlocks(const char* op, const char* name, const TensorView& v, int64_t num_blocks) {
  const int32_t* block = v.ptr<int32_t>();
  for (int64_t r = 0; r < v.shape[0]; ++r) {
    if (block[r] >= num_blocks) {
      return InvalidOp(op, At(name, r, block[r]) + ", need less than " +
                               std::to_string(num_blocks) + " (negative: none)");
    }
  }
  return Status::Ok();
}

}  // namespace

Status Validate(const StateMappingArgs& a) {
  const char* op = "state_mapping";
  OCTAVO_RETURN_IF_ERROR(
      CheckColumn(op, "source", a.source, DType::kI32, kAnyExtent, /*written=*/true));
  const int64_t rows = a.source.shape[0];
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "target", a.target, DType::kI32, rows, /*written=*/true));
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "query_start", a.query_start, DType::kI32, rows + 1));
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "row_slot", a.row_slot, DType::kI32, rows));
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "seq_len", a.seq_len, DType::kI32, rows));
  const OpTensor table{op, "block_table", a.block_table};
  OCTAVO_RETURN_IF_ERROR(CheckDType(table, DType::kI32));
  OCTAVO_RETURN_IF_ERROR(CheckShape(table, {kAnyExtent, kAnyExtent}));
  OCTAVO_RETURN_IF_ERROR(CheckBlockSize(op, a.block_size));
  for (const TensorView* out : {&a.source, &a.target}) {
    OCTAVO_RETURN_IF_ERROR(
        CheckApart(op, *out, {&a.query_start, &a.row_slot, &a.seq_len, &a.block_table}));
  }
  return Status::Ok();
}

Status ValidateIndices(const StateMappingArgs& a) {
  const char* op = "state_mapping";
  const int64_t rows = a.source.shape[0], limit = TableRoom(a.block_table, a.block_size);
  OCTAVO_RETURN_IF_ERROR(CheckStarts(op, a.query_start, INT32_MAX));
  const int32_t* start = a.query_start.ptr<int32_t>();
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t slot = a.row_slot.ptr<int32_t>()[r], length = a.seq_len.ptr<int32_t>()[r];
    if (slot < 0 || slot >= a.block_table.shape[0]) {
      return InvalidOp(op, At("row_slot", r, slot) + ", need 0 to " +
                               std::to_string(a.block_table.shape[0] - 1));
    }
    const int64_t tokens = start[r + 1] - start[r];
    if (tokens == 0) continue;
    if (length < tokens || length > limit) {
      return InvalidOp(op, At("seq_len", r, length) + ", need the row's " + std::to_string(tokens) +
                               " tokens to " + std::to_string(limit));
    }
    const int32_t* line = a.block_table.ptr<int32_t>() + slot * a.block_table.stride[0];
    for (const int64_t position : {length - tokens - 1, length - 1}) {
      if (position < 0 || line[position / a.block_size] > 0) continue;
      // The null block holds nobody's state: writing to it would mix requests.
      return InvalidOp(op, "block_table holds no block at entry " +
                               std::to_string(position / a.block_size) + " of row " +
                               std::to_string(r));
    }
  }
  return Status::Ok();
}

Status Validate(const CausalConv1dArgs& a) {
  const char* op = "causal_conv1d";
  const OpTensor x{op, "x", a.x}, weight{op, "weight", a.weight};
  const OpTensor out{op, "out", a.out, /*written=*/true};
  const OpTensor state{op, "state", a.state, /*written=*/true};
  OCTAVO_RETURN_IF_ERROR(CheckFloat(x));
  OCTAVO_RETURN_IF_ERROR(CheckShape(x, {kAnyExtent, kAnyExtent}));
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(out, x));
  OCTAVO_RETURN_IF_ERROR(CheckShape(out, {a.x.shape[0], a.x.shape[1]}));
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(weight, x));
  OCTAVO_RETURN_IF_ERROR(CheckShape(weight, {a.x.shape[1], kAnyExtent}));
  const int64_t taps = a.weight.shape[1];
  if (taps < 2 || taps > kMaxTaps) {
    return InvalidOp(
        op, "weight has " + std::to_string(taps) + " taps, need 2 to " + std::to_string(kMaxTaps));
  }
  if (a.bias.has_value()) {
    OCTAVO_RETURN_IF_ERROR(CheckWeights({op, "bias", *a.bias}, x, a.x.shape[1]));
  }
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(state, x));
  OCTAVO_RETURN_IF_ERROR(CheckShape(state, {kAnyExtent, taps - 1, a.x.shape[1]}));
  OCTAVO_RETURN_IF_ERROR(CheckRows(op, a.query_start, a.source, a.target));
  OCTAVO_RETURN_IF_ERROR(CheckApart(op, a.out, {&a.query_start, &a.source, &a.target}));
  return CheckApart(op, a.state, {&a.query_start, &a.source, &a.target});
}

Status ValidateIndices(const CausalConv1dArgs& a) {
  const char* op = "causal_conv1d";
  OCTAVO_RETURN_IF_ERROR(CheckStarts(op, a.query_start, a.x.shape[0]));
  OCTAVO_RETURN_IF_ERROR(CheckBlocks(op, "source", a.source, a.state.shape[0]));
  return CheckBlocks(op, "target", a.target, a.state.shape[0]);
}

Status Validate(const SsmScanArgs& a) {
  const char* op = "ssm_scan";
  const OpTensor x{op, "x", a.x}, dt{op, "dt", a.dt}, b{op, "b", a.b}, c{op, "c", a.c};
  const OpTensor out{op, "out", a.out, /*written=*/true};
  const OpTensor state{op, "state", a.state, /*written=*/true};
  OCTAVO_RETURN_IF_ERROR(CheckFloat(x));
  OCTAVO_RETURN_IF_ERROR(CheckShape(x, {kAnyExtent, kAnyExtent, kAnyExtent}));
  const int64_t n = a.x.shape[0], heads = a.x.shape[1], dim = a.x.shape[2];
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(out, x));
  OCTAVO_RETURN_IF_ERROR(CheckShape(out, {n, heads, dim}));
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(dt, x));
  OCTAVO_RETURN_IF_ERROR(CheckShape(dt, {n, heads}));
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(b, x));
  OCTAVO_RETURN_IF_ERROR(CheckShape(b, {n, kAnyExtent, kAnyExtent}));
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(c, x));
  OCTAVO_RETURN_IF_ERROR(CheckShape(c, {n, a.b.shape[1], a.b.shape[2]}));
  const int64_t groups = a.b.shape[1], size = a.b.shape[2];
  if (groups == 0 || heads % groups != 0) {
    return InvalidOp(op, "b has " + std::to_string(groups) + " groups, need a divisor of the " +
                             std::to_string(heads) + " heads of x");
  }
  if (size < 1 || size > kMaxStateSize) {
    return InvalidOp(op, "the state size is " + std::to_string(size) + ", need 1 to " +
                             std::to_string(kMaxStateSize));
  }
  OCTAVO_RETURN_IF_ERROR(CheckWeights({op, "a_log", a.a_log}, x, heads));
  OCTAVO_RETURN_IF_ERROR(CheckWeights({op, "dt_bias", a.dt_bias}, x, heads));
  OCTAVO_RETURN_IF_ERROR(CheckWeights({op, "skip", a.skip}, x, heads));
  OCTAVO_RETURN_IF_ERROR(CheckDType(state, DType::kF32));
  OCTAVO_RETURN_IF_ERROR(CheckShape(state, {kAnyExtent, heads, size, dim}));
  if (a.state.shape[0] > 0 && size > 1 && a.state.stride[2] != dim) {
    return InvalidOp(op, "state has stride " + std::to_string(a.state.stride[2]) +
                             " between values of one head, need " + std::to_string(dim));
  }
  OCTAVO_RETURN_IF_ERROR(CheckRows(op, a.query_start, a.source, a.target));
  OCTAVO_RETURN_IF_ERROR(CheckApart(op, a.out, {&a.query_start, &a.source, &a.target}));
  return CheckApart(op, a.state, {&a.query_start, &a.source, &a.target});
}

Status ValidateIndices(const SsmScanArgs& a) {
  const char* op = "ssm_scan";
  OCTAVO_RETURN_IF_ERROR(CheckStarts(op, a.query_start, a.x.shape[0]));
  OCTAVO_RETURN_IF_ERROR(CheckBlocks(op, "source", a.source, a.state.shape[0]));
  return CheckBlocks(op, "target", a.target, a.state.shape[0]);
}

Status Validate(const GatedRmsNormArgs& a) {
  const char* op = "gated_rms_norm";
  const OpTensor x{op, "x", a.x}, gate{op, "gate", a.gate};
  const OpTensor out{op, "out", a.out, /*written=*/true};
  OCTAVO_RETURN_IF_ERROR(CheckFloat(x));
  OCTAVO_RETURN_IF_ERROR(CheckShape(x, {kAnyExtent, kAnyExtent}));
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(out, x));
  OCTAVO_RETURN_IF_ERROR(CheckShape(out, {a.x.shape[0], a.x.shape[1]}));
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(gate, x));
  OCTAVO_RETURN_IF_ERROR(CheckShape(gate, {a.x.shape[0], a.x.shape[1]}));
  OCTAVO_RETURN_IF_ERROR(CheckWeights({op, "weight", a.weight}, x, a.x.shape[1]));
  if (a.groups < 1 || a.x.shape[1] == 0 || a.x.shape[1] % a.groups != 0) {
    return InvalidOp(op, "groups is " + std::to_string(a.groups) + ", need a divisor of the " +
                             std::to_string(a.x.shape[1]) + " columns of x");
  }
  if (!(a.eps >= 0.0f) || std::isinf(a.eps)) {
    return InvalidOp(op, "eps is " + std::to_string(a.eps) + ", need a finite number >= 0");
  }
  return Status::Ok();
}

}  // namespace octavo

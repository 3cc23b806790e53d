// What the ops ask of the numbers inside index tensors. The scans are branch-free over contiguous
// columns: a step's tables are a few thousand entries, microseconds a call, and in exchange no
// kernel can leave its memory.
#include <algorithm>
#include <string>

#include "base/ops_check.h"
#include "base/ops_parts.h"
#include "octavo/ops.h"

namespace octavo {
namespace {

// The first i with values[i] outside [0, limit), or n. `limit` <= 2^31.
int64_t FirstOutside(const int32_t* values, int64_t n, int64_t limit) {
  const uint32_t bound = static_cast<uint32_t>(std::min<int64_t>(limit, INT64_C(1) << 31));
  uint32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) bad |= static_cast<uint32_t>(values[i]) >= bound ? 1u : 0u;
  if (bad == 0) return n;
  for (int64_t i = 0; i < n; ++i) {
    if (static_cast<uint32_t>(values[i]) >= bound) return i;
  }
  return n;
}

Status Outside(const char* op, const std::string& name, int64_t index, int64_t value,
               int64_t limit) {
  return InvalidOp(op, name + "[" + std::to_string(index) + "] is " + std::to_string(value) +
                           ", need 0 to " + std::to_string(limit - 1));
}

Status CheckRange(const char* op, const char* name, const TensorView& v, int64_t limit) {
  const int32_t* values = v.ptr<int32_t>();
  const int64_t bad = FirstOutside(values, v.shape[0], limit);
  return bad == v.shape[0] ? Status::Ok() : Outside(op, name, bad, values[bad], limit);
}

Status CheckStarts(const char* op, const char* name, const TensorView& v, int64_t end) {
  const int32_t* start = v.ptr<int32_t>();
  const int64_t n = v.shape[0] - 1;
  bool good = start[0] == 0 && start[n] <= end;
  for (int64_t i = 0; i < n; ++i) good = good && start[i] <= start[i + 1];
  if (good) return Status::Ok();
  return InvalidOp(op, std::string(name) + " must start at 0, never fall and end at " +
                           std::to_string(end) + " or less");
}

Status CheckTableEntries(const char* op, const TensorView& table, int64_t row_slot, int64_t first,
                         int64_t last, int64_t num_blocks) {
  const int32_t* line = table.ptr<int32_t>() + row_slot * table.stride[0];
  const int64_t bad = first + FirstOutside(line + first, last - first, num_blocks);
  if (bad == last) return Status::Ok();
  return Outside(op, "block_table[" + std::to_string(row_slot) + "]", bad, line[bad], num_blocks);
}

}  // namespace

Status ValidateIndices(const RopeArgs& a) {
  return CheckRange("rope", "position", a.position, a.cos_sin.shape[0]);
}

Status ValidateIndices(const SlotMappingArgs& a) {
  const char* op = "slot_mapping";
  const int64_t rows = a.row_slot.shape[0];
  OCTAVO_RETURN_IF_ERROR(CheckStarts(op, "query_start", a.query_start, a.position.shape[0]));
  OCTAVO_RETURN_IF_ERROR(CheckRange(op, "row_slot", a.row_slot, a.block_table.shape[0]));
  const int64_t limit = TableRoom(a.block_table, a.block_size);
  const int32_t* start = a.query_start.ptr<int32_t>();
  const int32_t* position = a.position.ptr<int32_t>();
  const int64_t bad = FirstOutside(position, start[rows], limit);
  if (bad != start[rows]) return Outside(op, "position", bad, position[bad], limit);
  for (int64_t r = 0; r < rows; ++r) {
    const int32_t* line =
        a.block_table.ptr<int32_t>() + a.row_slot.ptr<int32_t>()[r] * a.block_table.stride[0];
    for (int64_t t = start[r]; t < start[r + 1]; ++t) {
      const int64_t entry = position[t] / a.block_size;
      if (line[entry] >= 0) continue;
      return InvalidOp(op, "block_table holds " + std::to_string(line[entry]) + " at entry " +
                               std::to_string(entry) + " of row " + std::to_string(r) +
                               ", need a block of 0 or more");
    }
  }
  return Status::Ok();
}

Status CheckSlots(const char* op, const TensorView& column, int64_t slots) {
  const int64_t* slot = column.ptr<int64_t>();
  for (int64_t i = 0; i < column.shape[0]; ++i) {
    if (slot[i] >= slots) {
      return InvalidOp(op, "slot[" + std::to_string(i) + "] is " + std::to_string(slot[i]) +
                               ", need less than " + std::to_string(slots) + " (negative: skip)");
    }
  }
  return Status::Ok();
}

Status ValidateIndices(const CacheWriteArgs& a) {
  return CheckSlots("cache_write", a.slot, a.cache.shape[0] * a.cache.shape[3]);
}

Status ValidateIndices(const NormRopeCacheArgs& a) {
  OCTAVO_RETURN_IF_ERROR(ValidateIndices(RopeOf(a)));
  return ValidateIndices(CacheWriteOf(a));
}

Status ValidateIndices(const FillTokensArgs& a) {
  const char* op = "fill_tokens";
  OCTAVO_RETURN_IF_ERROR(CheckStarts(op, "query_start", a.query_start, a.token_id.shape[0]));
  return CheckRange(op, "row_slot", a.row_slot, a.last_token.shape[0]);
}

Status ValidateIndices(const KeepTokensArgs& a) {
  const char* op = "keep_tokens";
  OCTAVO_RETURN_IF_ERROR(CheckRange(op, "sample_row", a.sample_row, a.row_slot.shape[0]));
  return CheckRange(op, "row_slot", a.row_slot, a.last_token.shape[0]);
}

Status ValidateIndices(const PagedAttentionArgs& a) {
  return CheckAttentionIndices("paged_attention", a);
}

Status ValidateIndices(const NormRopeAttentionArgs& a) {
  OCTAVO_RETURN_IF_ERROR(ValidateIndices(NormRopeCacheOf(a)));
  return ValidateIndices(a.attention);
}

Status CheckAttentionIndices(const char* op, const PagedAttentionArgs& a) {
  const int64_t rows = a.row_slot.shape[0];
  const int64_t block_size = a.cache.shape[3];
  OCTAVO_RETURN_IF_ERROR(CheckStarts(op, "query_start", a.query_start, a.q.shape[0]));
  OCTAVO_RETURN_IF_ERROR(CheckRange(op, "row_slot", a.row_slot, a.block_table.shape[0]));
  OCTAVO_RETURN_IF_ERROR(
      CheckRange(op, "seq_len", a.seq_len, TableRoom(a.block_table, block_size) + 1));
  const int32_t* start = a.query_start.ptr<int32_t>();
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t length = a.seq_len.ptr<int32_t>()[r];
    const int64_t queries = start[r + 1] - start[r];
    if (length == 0 || queries == 0) continue;
    if (queries > length) {
      return InvalidOp(op, "seq_len[" + std::to_string(r) + "] is " + std::to_string(length) +
                               ", need at least the row's " + std::to_string(queries) +
                               " queries (or 0 to skip the row)");
    }
    // Blocks wholly before the first query's window may be gone; they are neither read nor checked.
    const int64_t first_key = FirstVisibleKey(a, length - queries);
    OCTAVO_RETURN_IF_ERROR(
        CheckTableEntries(op, a.block_table, a.row_slot.ptr<int32_t>()[r], first_key / block_size,
                          (length + block_size - 1) / block_size, a.cache.shape[0]));
  }
  return Status::Ok();
}

Status ValidateIndices(const SampleArgs& a) {
  const char* op = "sample";
  OCTAVO_RETURN_IF_ERROR(CheckStarts(op, "bias_start", a.bias_start, a.bias_token.shape[0]));
  OCTAVO_RETURN_IF_ERROR(CheckRange(op, "bias_token", a.bias_token, a.logits.shape[1]));
  for (int64_t s = 0; s < a.logits.shape[0]; ++s) {
    const int64_t length = a.history_len.ptr<int32_t>()[s];
    const int64_t prompt = a.prompt_len.ptr<int32_t>()[s];
    if (length < 0 || prompt < 0 || prompt > length) {
      return InvalidOp(op, "row " + std::to_string(s) + " has history_len " +
                               std::to_string(length) + " and prompt_len " +
                               std::to_string(prompt) + ", need 0 <= prompt_len <= history_len");
    }
    if (length > 0 && a.history.ptr<uint64_t>()[s] == 0) {
      return InvalidOp(op, "history[" + std::to_string(s) + "] is 0 but history_len is " +
                               std::to_string(length) + ", need the address of its tokens");
    }
  }
  return Status::Ok();
}

Status ValidateIndices(const LogprobsArgs& a) {
  const int32_t* token = a.token.ptr<int32_t>();
  for (int64_t s = 0; s < a.token.shape[0]; ++s) {
    if (token[s] >= -1 && token[s] < a.logits.shape[1]) continue;
    return Outside("logprobs", "token", s, token[s], a.logits.shape[1]);
  }
  return Status::Ok();
}

}  // namespace octavo

#include "engine/hash_model.h"

#include <cmath>

#include "base/check.h"

namespace octavo::engine {
namespace {

uint64_t Mix(uint64_t a, uint64_t b) {
  uint64_t x = (a ^ (b + 0x9E3779B97F4A7C15ull)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 29)) * 0x94D049BB133111EBull;
  return x ^ (x >> 32);
}

}  // namespace

HashModel::HashModel(const EngineConfig& config, const batch::Arena& arena)
    : vocab_size_(config.vocab_size),
      block_size_(config.block_size),
      arena_(arena),
      cells_(size_t(config.num_blocks) * config.block_size),
      latest_(config.max_num_seqs, -1) {}

HashModel::Cell& HashModel::CellAt(const StepPlan& plan, int32_t slot, int32_t position) {
  const BlockTableView& table = plan.block_tables[0];
  const int32_t block = table.data[slot * table.row_stride + position / block_size_];
  return cells_[size_t(block) * block_size_ + position % block_size_];
}

Status HashModel::Execute(const StepPlan& plan, std::span<int32_t> tokens) {
  // Row after row: a row may hit blocks that an earlier row of the same step writes.
  for (int32_t r = 0; r < plan.num_rows; ++r) WriteRow(plan, r);
  for (int32_t s = 0; s < plan.num_samples; ++s) {
    tokens[s] = Sample(plan, s);
    latest_[plan.row_slot[plan.sample_row[s]]] = tokens[s];
    if (fail_one_in_ == 0) continue;
    fail_state_ = Mix(fail_state_, 1);
    if (fail_state_ % fail_one_in_ == 0) tokens[s] = -1;
  }
  return Status::Ok();
}

void HashModel::WriteRow(const StepPlan& plan, int32_t row) {
  const int32_t slot = plan.row_slot[row];
  for (int32_t t = plan.query_start[row]; t < plan.query_start[row + 1]; ++t) {
    const int32_t p = plan.position[t];
    const int32_t token = plan.token_id[t] >= 0 ? plan.token_id[t] : latest_[slot];
    const uint64_t before = p == 0 ? 0 : CellAt(plan, slot, p - 1).digest;
    CellAt(plan, slot, p) = {Mix(before, uint64_t(token) << 32 | uint32_t(p)), token, p};
  }
}

int32_t HashModel::Sample(const StepPlan& plan, int32_t sample) {
  const int32_t row = plan.sample_row[sample];
  const int32_t slot = plan.row_slot[row];
  OCTAVO_CHECK(plan.sample_token[sample] == plan.query_start[row + 1] - 1,
               "a sample is not at the end of its row");
  const int32_t* history =
      plan.all_greedy ? nullptr : reinterpret_cast<const int32_t*>(plan.history[sample]);
  uint64_t digest = 1;
  for (int32_t p = 0; p < plan.seq_len[row]; ++p) {
    const Cell& cell = CellAt(plan, slot, p);
    digest = Mix(Mix(digest, cell.digest), uint64_t(cell.token) << 32 | uint32_t(cell.position));
    // The host's history must tell what the cache tells.
    if (history && p < plan.history_len[sample] && history[p] != cell.token) digest = ~digest;
  }
  return Choose(plan, sample, digest);
}

int32_t HashModel::Choose(const StepPlan& plan, int32_t sample, uint64_t digest) const {
  if (plan.all_greedy) return int32_t(digest % uint64_t(vocab_size_));
  if (plan.temperature[sample] > 0) {
    digest = Mix(digest, Mix(plan.seed[sample], uint64_t(plan.sample_index[sample])));
  }
  for (int32_t i = 0; i < vocab_size_; ++i) {
    const int32_t token = int32_t((digest + uint64_t(i)) % uint64_t(vocab_size_));
    if (Allowed(plan, sample, token)) return token;
  }
  return -1;
}

bool HashModel::Allowed(const StepPlan& plan, int32_t sample, int32_t token) const {
  const auto mask = reinterpret_cast<const uint32_t*>(
      arena_.At<uint64_t>(plan.slot, batch::Column::kMask)[sample]);
  if (mask && !(mask[token / 32] >> (token % 32) & 1)) return false;
  const int32_t* start = arena_.At<int32_t>(plan.slot, batch::Column::kBiasStart);
  for (int32_t e = start[sample]; e < start[sample + 1]; ++e) {
    if (arena_.At<int32_t>(plan.slot, batch::Column::kBiasToken)[e] == token &&
        std::isinf(arena_.At<float>(plan.slot, batch::Column::kBiasValue)[e])) {
      return false;
    }
  }
  return true;
}

}  // namespace octavo::engine

#include "hash_executor.h"

#include <algorithm>

namespace {

// A bijection that spreads every bit over the word, so that two different prefixes hardly ever
// meet.
uint64_t Mix(uint64_t x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdULL;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ULL;
  return x ^ (x >> 33);
}

// The "key and value" of a token: it depends on the token and where it stands, as with a rotary
// embedding.
uint64_t KeyValue(int32_t token, int32_t position) {
  return Mix((static_cast<uint64_t>(position) << 32) | static_cast<uint32_t>(token));
}

uint64_t Attend(uint64_t state, uint64_t key_value) { return Mix(state ^ key_value); }

}  // namespace

HashExecutor::HashExecutor(const octavo::EngineConfig& config)
    : vocab_size_(static_cast<uint64_t>(config.vocab_size)),
      cache_(static_cast<size_t>(config.num_blocks) * static_cast<size_t>(config.block_size)) {}

int64_t HashExecutor::SlotOf(const octavo::BlockTableView& table, int32_t row_slot,
                             int32_t position) const {
  const int32_t block = table.data[row_slot * table.row_stride + position / table.block_size];
  return static_cast<int64_t>(block) * table.block_size + position % table.block_size;
}

octavo::Status HashExecutor::Execute(const octavo::StepPlan& plan, std::span<int32_t> tokens) {
  const octavo::BlockTableView& table = plan.block_tables[0];

  // First the copies: prefixes that end inside a block somebody else has begun alike.
  for (int32_t i = 0; i < plan.num_copies; ++i) {
    const auto block = [&](int32_t id) { return cache_.begin() + int64_t{id} * table.block_size; };
    std::copy_n(block(plan.copy_source[i]), plan.copy_tokens[i], block(plan.copy_target[i]));
  }
  for (int32_t row = 0; row < plan.num_rows; ++row) {
    for (int32_t n = plan.query_start[row]; n < plan.query_start[row + 1]; ++n) {
      const int64_t slot = SlotOf(table, plan.row_slot[row], plan.position[n]);
      if (slot < table.block_size) {
        return octavo::Status::Internal("a token would be written to the null block");
      }
      cache_[static_cast<size_t>(slot)] = KeyValue(plan.token_id[n], plan.position[n]);
    }
  }

  for (int32_t s = 0; s < plan.num_samples; ++s) {
    const int32_t row = plan.sample_row[s];
    const int32_t last = plan.position[plan.sample_token[s]];
    uint64_t state = 0;
    for (int32_t position = 0; position <= last; ++position) {
      state =
          Attend(state, cache_[static_cast<size_t>(SlotOf(table, plan.row_slot[row], position))]);
    }
    tokens[static_cast<size_t>(s)] = Token(state);
  }
  return octavo::Status::Ok();
}

std::vector<int32_t> HashExecutor::Expect(std::span<const int32_t> prompt,
                                          int32_t max_tokens) const {
  uint64_t state = 0;
  int32_t position = 0;
  for (const int32_t token : prompt) state = Attend(state, KeyValue(token, position++));

  std::vector<int32_t> output;
  for (int32_t i = 0; i < max_tokens; ++i) {
    const int32_t token = Token(state);
    output.push_back(token);
    state = Attend(state, KeyValue(token, position++));
  }
  return output;
}

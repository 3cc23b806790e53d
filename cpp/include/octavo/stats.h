// EngineStats: counters since the start and the state of the memory right now.
#pragma once

#include <cstdint>

namespace octavo {

struct EngineStats {
  uint64_t steps = 0;
  uint64_t failed_steps = 0;
  uint64_t scheduled_tokens = 0;
  uint64_t prompt_tokens = 0;  // prompt tokens computed, recomputation after preemption included
  uint64_t generation_tokens = 0;
  uint64_t draft_rows = 0;       // rows that carried drafts
  uint64_t draft_tokens = 0;     // drafts in them
  uint64_t accepted_tokens = 0;  // drafts that the model's own token equalled
  uint64_t prefix_queries = 0;   // tokens looked up at admission
  uint64_t prefix_hits = 0;      // tokens of them found
  uint64_t copied_tokens = 0;    // and of these, those that were copied from another block
  uint64_t preemptions = 0;
  uint64_t evictions = 0;  // cached blocks given to other content
  uint64_t finished_stop = 0;
  uint64_t finished_length = 0;
  uint64_t finished_abort = 0;
  uint64_t finished_error = 0;
  uint64_t dropped_events = 0;
  uint64_t kv_loads = 0;             // loads that a connector was asked for
  uint64_t kv_loads_failed = 0;      // of them, whose KV did not (all) arrive
  uint64_t kv_loaded_tokens = 0;     // prompt tokens whose KV was loaded
  uint64_t kv_saves = 0;             // released prefixes that a connector held on to
  uint64_t kv_connector_deaths = 0;  // 1: the engine goes on without its connector
  uint64_t encoder_queries = 0;      // images and audio clips that a request began to use
  uint64_t encoder_hits = 0;         // of these, cached ones
  int64_t running = 0;
  int64_t waiting = 0;
  int64_t total_blocks = 0;        // without the null block
  int64_t free_blocks = 0;         // cached ones included
  int64_t cached_blocks = 0;       // blocks that carry a prefix hash
  int64_t encoder_entries = 0;     // images and audio clips whose embeddings are kept
  int64_t encoder_embeddings = 0;  // of these
  int64_t kv_slots_allocated = 0;  // slots of the blocks in running requests' tables
  int64_t kv_transfers = 0;        // loads and saves that hold blocks right now
  int64_t kv_slots_filled = 0;     // of these, slots that hold a token
};

}  // namespace octavo

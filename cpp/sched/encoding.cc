// Images and audio: which items a chunk may reach, and how long their embeddings are kept.
//
// A request uses an item's entry from the first chunk that reaches into its span until the whole
// span is processed. No chunk reaches an item whose embeddings are neither cached nor affordable in
// this step, and none ends inside a span whose tokens see each other. A request holds at most the
// items of its chunks in flight and waits for no other while it holds them, so nobody waits for
// ever.
#include <algorithm>

#include "base/check.h"
#include "base/strcat.h"
#include "sched/scheduler.h"

namespace octavo::sched {
namespace {

// Whether an earlier item of the same chunk brings the same content in.
bool SeenBefore(const Request& r, size_t first, size_t i) {
  for (size_t j = first; j < i; ++j) {
    if (r.items[j].entry < 0 && r.items[j].hash() == r.items[i].hash()) return true;
  }
  return false;
}

}  // namespace

Status Scheduler::CheckEncoderItems(const RequestInput& input) const {
  const auto items = input.encoder_items;
  const auto refuse = [](size_t i, auto... text) {
    return Status::InvalidArgument(StrCat("encoder_items[", i, "] ", text...));
  };
  if (Status s = CheckCrossItems(items); !s.ok()) return s;
  if (items.size() > kMaxEncoderItems) {
    return Status::InvalidArgument(
        StrCat("encoder_items has ", items.size(), " entries: give at most ", kMaxEncoderItems));
  }
  const int64_t length = static_cast<int64_t>(input.prompt.size());
  // The chunk that a cross item is encoded for may begin with another item.
  int32_t cross = 0;
  for (const EncoderItem& item : items) cross += item.cross ? item.embeddings : 0;
  const int32_t most = std::min(config_.encoder_cache_size, StepEncoderBudget() - cross);
  int64_t end = 0;
  int64_t total = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    const EncoderItem& item = items[i];
    if (item.cross) continue;
    if (config_.encoder_cache_size == 0) {
      return refuse(i, "cannot be kept: encoder_cache_size is 0, set it to the embeddings to keep");
    }
    if (item.start < end || item.length < 1 || int64_t{item.start} + item.length > length) {
      return refuse(i, "has start=", item.start, " and length=", item.length,
                    ": spans lie one after another within the prompt's ", length, " tokens");
    }
    if (item.embeddings < 1 || item.embeddings > most) {
      return refuse(i, "has embeddings=", item.embeddings,
                    ": one step encodes and the cache keeps at most ", most,
                    cross > 0 ? " beside the cross item" : "",
                    ", raise encoder_cache_size and encoder_budget");
    }
    if (item.bidirectional && item.length > config_.max_num_batched_tokens) {
      return refuse(i, "has length=", item.length,
                    ", and its tokens see each other: one step takes ",
                    "max_num_batched_tokens=", config_.max_num_batched_tokens, ", raise it");
    }
    const int32_t entry = encoder_.Find({item.hash[0], item.hash[1]});
    if (entry >= 0 && encoder_.embeddings(entry) != item.embeddings) {
      return refuse(i, "has embeddings=", item.embeddings,
                    ", but the same hash was submitted with ", encoder_.embeddings(entry),
                    ": hash all that decides the embeddings");
    }
    for (size_t j = 0; j < i; ++j) {
      const bool same =
          !items[j].cross && items[j].hash[0] == item.hash[0] && items[j].hash[1] == item.hash[1];
      if (same && items[j].embeddings != item.embeddings) {
        return refuse(i, "has embeddings=", item.embeddings, ", but item ", j,
                      " with the same hash has ", items[j].embeddings);
      }
    }
    end = int64_t{item.start} + item.length;
    total += item.embeddings;
  }
  if (!config_.enable_chunked_prefill && total > most) {
    return Status::InvalidArgument(StrCat(
        "encoder_items have ", total, " embeddings together: without chunked prefill all of ",
        "them must fit one step, which encodes and keeps at most ", most));
  }
  return Status::Ok();
}

int32_t Scheduler::ClipToEncoder(const Request& r, int32_t start, int32_t count,
                                 EncoderLimit* limit, int32_t reserved) const {
  size_t i = static_cast<size_t>(r.first_item);
  while (i < r.items.size() && r.items[i].end() <= start) ++i;
  const size_t first = i;
  int32_t end = start + count;
  int32_t compute = pass_.encoder_budget - reserved;
  int32_t room = encoder_.available();
  EncoderLimit why = EncoderLimit::kNone;
  for (; count > 0 && i < r.items.size() && r.items[i].item.start < end; ++i) {
    const EncoderUse& use = r.items[i];
    if (use.item.bidirectional && use.end() > end) {
      // The chunk would end inside. A span that is begun is taken whole, also where another limit
      // wants less, or it would never be.
      const bool whole = use.item.start <= start && use.end() - start <= pass_.budget;
      end = whole ? use.end() : std::max(use.item.start, start);
      if (!whole) {
        why = EncoderLimit::kStep;
        break;
      }
    }
    if (use.entry >= 0 || SeenBefore(r, first, i)) continue;
    const int32_t entry = encoder_.Find(use.hash());
    if (entry >= 0 && encoder_.uses(entry) > 0) continue;
    // One that is cached, but used by nobody, can make no room for the others any more.
    const int32_t size = use.item.embeddings;
    const int32_t work = entry >= 0 ? 0 : size;
    if (compute < work || room < size) {
      why = compute < work ? EncoderLimit::kStep : EncoderLimit::kCache;
      end = std::max(use.item.start, start);
      break;
    }
    compute -= work;
    room -= size;
  }
  if (limit) *limit = why;
  return end - start;
}

void Scheduler::HandOutEncoding(StepRecord& step) {
  if (config_.encoder_cache_size == 0 && !kv_.has_cross()) return;
  step.encoder_evicted.assign(encoder_.evicted().begin(), encoder_.evicted().end());
  encoder_.ClearEvicted();
  batch_.SetEncoders(step.encoder_evicted, step.encoder_inputs, step.encoder_spans);
}

void Scheduler::UseEncoder(Request& r, int32_t start, int32_t count) {
  if (static_cast<size_t>(r.first_item) >= r.items.size()) return;
  StepRecord& step = record(next_step_);
  const int32_t row = batch_.num_rows() - 1;
  const int32_t token = batch_.num_tokens() - count;
  const auto reached = [&](const EncoderUse& use) { return use.item.start < start + count; };
  // What is cached is taken first, so that making room for the rest does not evict it.
  for (size_t i = r.first_item; i < r.items.size() && reached(r.items[i]); ++i) {
    EncoderUse& use = r.items[i];
    if (use.entry >= 0 || use.end() <= start) continue;
    use.entry = encoder_.Find(use.hash());
    ++stats_.encoder_queries;
    if (use.entry < 0) continue;
    ++stats_.encoder_hits;
    encoder_.Use(use.entry);
  }
  for (size_t i = r.first_item; i < r.items.size() && reached(r.items[i]); ++i) {
    EncoderUse& use = r.items[i];
    if (use.end() <= start) continue;
    if (use.entry < 0) {
      use.entry = encoder_.Find(use.hash());  // the same content earlier in this chunk
      if (use.entry >= 0) {
        encoder_.Use(use.entry);
      } else {
        use.entry = encoder_.Insert(use.hash(), use.item.embeddings, step.id);
        pass_.encoder_budget -= use.item.embeddings;
        step.encoder_inputs.push_back({Value(r.id), use.index, use.entry, row});
      }
    }
    const int32_t from = std::max(use.item.start, start);
    const int32_t to = std::min(use.end(), start + count);
    step.encoder_spans.push_back(
        {token + from - start, to - from, from - use.item.start, use.entry, use.index, row});
  }
}

void Scheduler::AdvanceEncoder(Request& r, int32_t processed) {
  for (; static_cast<size_t>(r.first_item) < r.items.size(); ++r.first_item) {
    EncoderUse& use = r.items[r.first_item];
    if (use.end() > processed) return;
    if (use.entry >= 0) encoder_.Release(use.entry);
    use.entry = -1;
  }
}

void Scheduler::ReleaseEncoder(Request& r) {
  for (EncoderUse& use : r.items) {
    if (use.entry >= 0) encoder_.Release(use.entry);
    use.entry = -1;
  }
  r.first_item = 0;
}

void Scheduler::ForgetEncoded(const StepRecord& step) {
  for (const EncoderInput& input : step.encoder_inputs) {
    if (input.entry < 0) continue;  // blocks, which go with what the step or row has filed
    // The entry may have been evicted and given out again since.
    const bool same = encoder_.embeddings(input.entry) > 0 && encoder_.step(input.entry) == step.id;
    if (same) encoder_.Forget(input.entry);
  }
}

void Scheduler::CheckEncoderInvariants() const {
  encoder_.CheckInvariants();
  int32_t held = 0;
  for (const Request* r : running_) {
    for (const EncoderUse& use : r->items) {
      if (use.entry < 0) continue;
      ++held;
      OCTAVO_CHECK(encoder_.uses(use.entry) > 0, "a request uses an entry that is not in use");
    }
  }
  OCTAVO_CHECK(held == encoder_.total_uses(), "uses of the encoder cache were lost");
}

}  // namespace octavo::sched

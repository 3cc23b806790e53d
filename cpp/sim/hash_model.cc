#include "sim/hash_model.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "sim/oracle.h"

namespace octavo::sim {
namespace {

uint64_t Onwards(uint64_t state) { return state == kNan ? kNan : StateBefore(state); }

}  // namespace

HashModel::HashModel(const EngineConfig& config, const batch::Arena& arena)
    : vocab_size_(config.vocab_size),
      arena_(arena),
      latest_(config.max_num_seqs, -1),
      embeddings_(config.encoder_cache_size) {
  int32_t places = 1;  // of a parent
  for (const GroupSpec& spec : GroupsOf(config)) places = std::lcm(places, spec.split);
  for (const GroupSpec& spec : GroupsOf(config)) {
    Group& g = groups_.emplace_back();
    g.spec = spec;
    g.index = static_cast<int>(groups_.size()) - 1;
    g.stride = places / spec.split;
    g.cells.resize(size_t(config.num_blocks) * spec.split * spec.block_size);
  }
  states_.resize(groups_.size());
  cross_.resize(groups_.size());
  owner_.assign(size_t(config.num_blocks) * places, -1);
}

int32_t HashModel::BlockAt(const Group& g, const StepPlan& plan, int32_t slot,
                           int32_t position) const {
  const BlockTableView& table = plan.block_tables[g.index];
  return table.data[slot * table.row_stride + position / g.spec.block_size];
}

const Cell& HashModel::Read(const Group& g, const StepPlan& plan, int32_t slot, int32_t position) {
  const size_t first = size_t(BlockAt(g, plan, slot, position)) * g.spec.block_size;
  const Cell& cell = g.cells[first + (IsState(g) ? 0 : position % g.spec.block_size)];
  if (cell.digest == kNan) [[unlikely]]
    saw_nan_ = true;
  return cell;
}

void HashModel::Write(Group& g, const StepPlan& plan, int32_t slot, const Cell& cell) {
  const int32_t block = BlockAt(g, plan, slot, cell.position);
  OCTAVO_CHECK(block > 0, "a token has no block to write to");
  Own(g, block);
  const size_t first = size_t(block) * g.spec.block_size;
  g.cells[first + (IsState(g) ? 0 : cell.position % g.spec.block_size)] = cell;
}

void HashModel::Own(Group& g, int32_t block) {
  const auto clear = [](Group& group, int32_t b) {
    std::fill_n(group.cells.begin() + int64_t{b} * group.spec.block_size, group.spec.block_size,
                Cell{});
  };
  bool taken = false;
  for (int32_t place = block * g.stride; place < (block + 1) * g.stride; ++place) {
    const int8_t before = std::exchange(owner_[place], static_cast<int8_t>(g.index));
    if (before == g.index) continue;
    if (before >= 0) clear(groups_[before], place / groups_[before].stride);
    taken = true;
  }
  if (taken) clear(g, block);
}

std::vector<Cell> HashModel::ReadBlock(int group, int32_t block) const {
  const Group& g = groups_[group];
  const auto first = g.cells.begin() + int64_t{block} * g.spec.block_size;
  return {first, first + g.spec.block_size};
}

void HashModel::WriteBlock(int group, int32_t block, std::span<const Cell> cells) {
  Group& g = groups_[group];
  OCTAVO_CHECK(block > 0, "the null block is written to");
  Own(g, block);
  std::copy(cells.begin(), cells.end(), g.cells.begin() + int64_t{block} * g.spec.block_size);
}

void HashModel::Encode(const StepPlan& plan, std::span<const Encoded> inputs) {
  embeddings_.Take(plan, inputs);
  for (size_t i = 0; i < inputs.size(); ++i) {
    const EncoderInput& input = plan.encoder_inputs[i];
    if (input.entry >= 0) continue;
    OCTAVO_CHECK(plan.request[input.row] == input.request, "an item names another request's row");
    for (Group& g : groups_) {
      for (int32_t e = 0; e < inputs[i].embeddings && IsCross(g); ++e) {
        Cell cell = EncodedCell(inputs[i].content, e);
        if (inputs[i].nan) cell.digest = kNan;
        Write(g, plan, plan.row_slot[input.row], cell);
      }
    }
  }
}

Status HashModel::Execute(const StepPlan& plan, std::span<int32_t> tokens) {
  for (int32_t i = 0; i < plan.num_copies; ++i) Copy(plan, i);
  embeddings_.BeginStep(plan);
  nan_samples_.clear();
  // Row after row: a row may hit blocks that an earlier row of the same step writes.
  for (int32_t r = 0; r < plan.num_rows; ++r) WriteRow(plan, r);
  broken_token_ = -1;
  for (int32_t s = 0; s < plan.num_samples; ++s) {
    tokens[s] = Sample(plan, s);
    latest_[plan.row_slot[plan.sample_row[s]]] = tokens[s];
  }
  return Status::Ok();
}

void HashModel::Corrupt(uint64_t choice) {
  Group& g = groups_[choice % groups_.size()];
  for (size_t i = 0; i < g.cells.size(); ++i) {
    Cell& cell = g.cells[(choice / groups_.size() + i) % g.cells.size()];
    if (cell.token < 0) continue;
    ++cell.digest;
    return;
  }
}

void HashModel::Copy(const StepPlan& plan, int32_t i) {
  Group& g = groups_[plan.copy_group[i]];
  OCTAVO_CHECK(!IsState(g) && plan.copy_source[i] != plan.copy_target[i], "a copy makes no sense");
  Own(g, plan.copy_target[i]);
  const auto source = g.cells.begin() + int64_t{plan.copy_source[i]} * g.spec.block_size;
  const auto target = g.cells.begin() + int64_t{plan.copy_target[i]} * g.spec.block_size;
  std::fill_n(target, g.spec.block_size, Cell{});
  std::copy_n(source, plan.copy_tokens[i], target);
}

void HashModel::WriteRow(const StepPlan& plan, int32_t row) {
  const int32_t slot = plan.row_slot[row];
  const int32_t start = plan.position[plan.query_start[row]];
  for (const Group& g : groups_) {
    if (IsCross(g)) {
      saw_nan_ = false;
      cross_[g.index] = SumCross(g, plan, row);
      if (saw_nan_) cross_[g.index] = kNan;
    }
    if (!IsState(g)) continue;
    const Cell before = start > 0 ? Read(g, plan, slot, start - 1) : Cell{};
    states_[g.index] = Onwards(before.digest + uint64_t(before.position + 1 != start));
  }
  for (int32_t t = plan.query_start[row]; t < plan.query_start[row + 1]; ++t) {
    const int32_t p = plan.position[t];
    const int32_t token = plan.token_id[t] >= 0 ? plan.token_id[t] : latest_[slot];
    if (t > plan.query_start[row]) {
      // Steps may start anywhere, so each token meets the state as if it were a step's first.
      for (uint64_t& state : states_) state = Onwards(state);
    }
    uint64_t digest = embeddings_.DigestOf(t, token, p);
    saw_nan_ = digest == kNan || t == broken_token_;
    for (const Group& g : groups_) digest = Mix(digest, See(g, plan, slot, p));
    if (saw_nan_) [[unlikely]]
      digest = kNan;
    for (Group& g : groups_) {
      if (IsCross(g)) continue;
      if (!IsState(g)) {
        Write(g, plan, slot, {digest, token, p});
        continue;
      }
      states_[g.index] = digest == kNan ? kNan : StateAfter(states_[g.index], digest);
      if (t + 1 == plan.query_start[row + 1]) Write(g, plan, slot, {states_[g.index], token, p});
    }
  }
}

uint64_t HashModel::See(const Group& g, const StepPlan& plan, int32_t slot, int32_t position) {
  if (IsState(g)) {
    if (states_[g.index] == kNan) saw_nan_ = true;
    return states_[g.index];
  }
  if (IsCross(g)) {
    if (cross_[g.index] == kNan) saw_nan_ = true;
    return cross_[g.index];
  }
  // The digest before covers all that came before it.
  if (KeepsEveryToken(g.spec.kind)) {
    return position == 0 ? 0 : Read(g, plan, slot, position - 1).digest;
  }
  return Sum(g, plan, slot, position, position, nullptr, 0);
}

uint64_t HashModel::Sum(const Group& g, const StepPlan& plan, int32_t slot, int32_t query,
                        int32_t end, const int32_t* history, int32_t known) {
  const int32_t first = FirstSeen(g.spec, query);
  uint64_t sum = 0;
  for (int32_t p = 0; p < end; ++p) {
    if (p >= g.spec.sink && p < first) p = first;
    if (p >= end) break;
    const Cell& cell = Read(g, plan, slot, p);
    sum += Shown(cell);
    // The host's history must tell what the cache tells.
    if (p < known && history[p] != cell.token) ++sum;
  }
  return sum;
}

uint64_t HashModel::SumCross(const Group& g, const StepPlan& plan, int32_t row) {
  uint64_t sum = 0;
  for (int32_t e = 0; e < plan.cross_len[row]; ++e) {
    sum += Shown(Read(g, plan, plan.row_slot[row], e));
  }
  return sum;
}

int32_t HashModel::Sample(const StepPlan& plan, int32_t sample) {
  const int32_t row = plan.sample_row[sample];
  const int32_t slot = plan.row_slot[row];
  const int32_t at = plan.sample_token[sample];
  OCTAVO_CHECK(at >= plan.query_start[row] && at < plan.query_start[row + 1],
               "a sample is not in its row");
  const int32_t last = plan.position[at];
  const int32_t* history =
      plan.all_greedy ? nullptr : reinterpret_cast<const int32_t*>(plan.history[sample]);
  const int32_t known = history ? std::min(last + 1, plan.history_len[sample]) : 0;
  saw_nan_ = false;
  uint64_t digest = 1;
  for (const Group& g : groups_) {
    digest = Mix(digest, IsState(g)   ? Shown(Read(g, plan, slot, last))
                         : IsCross(g) ? SumCross(g, plan, row)
                                      : Sum(g, plan, slot, last, last + 1, history, known));
  }
  if (saw_nan_) [[unlikely]] {
    nan_samples_.push_back(sample);
    return -1;
  }
  return Choose(plan, sample, digest);
}

int32_t HashModel::Choose(const StepPlan& plan, int32_t sample, uint64_t digest) const {
  if (plan.all_greedy) return int32_t(digest % uint64_t(vocab_size_));
  if (plan.temperature[sample] > 0) {
    digest = Drawn(digest, plan.seed[sample], uint64_t(plan.sample_index[sample]));
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

}  // namespace octavo::sim

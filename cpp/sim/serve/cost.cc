#include "sim/serve/cost.h"

#include <algorithm>
#include <cmath>

#include "base/strcat.h"

namespace octavo::sim {
namespace {

// Keys that the queries at [start, end) see, each at most `window` (0: all before and itself).
double KeysSeen(int32_t start, int32_t end, int32_t window) {
  const auto all = [](double n) { return n * (n + 1) / 2; };
  if (window == 0 || end <= window) return all(end) - all(start);
  if (start >= window) return double(end - start) * window;
  return all(window) - all(start) + double(end - window) * window;
}

class RooflineModel final : public CostModel {
 public:
  explicit RooflineModel(const Roofline& roofline) : r_(roofline) {}

  StepCost Of(const StepPlan& plan) const override {
    double bytes = r_.weight_bytes;
    double flops = r_.flops_of_a_token * plan.num_tokens + r_.flops_of_a_sample * plan.num_samples;
    for (int32_t row = 0; row < plan.num_rows; ++row) {
      const int32_t end = plan.seq_len[row];
      const int32_t count = plan.query_start[row + 1] - plan.query_start[row];
      for (const AttentionCost& a : r_.attention) {
        // A chunk reads each key once for all of its queries, and writes its own.
        const int32_t read = a.window == 0 ? end : std::min(end, a.window + count - 1);
        bytes += a.key_bytes * (read + count);
        flops += a.flops_of_a_key * KeysSeen(end - count, end, a.window);
      }
    }
    const double by_bytes = bytes / r_.bytes_per_second;
    const double by_flops = flops / r_.flops_per_second;
    StepCost cost;
    cost.seconds = std::max(by_bytes, by_flops) + r_.step_seconds + r_.row_seconds * plan.num_rows;
    cost.bandwidth_use = by_bytes / cost.seconds;
    cost.compute_use = by_flops / cost.seconds;
    return cost;
  }

 private:
  Roofline r_;
};

// The cell of a rising axis that holds x, and where in it; outside 0 to 1 beyond the ends.
struct Place {
  size_t low = 0;
  double share = 0;
};
Place Find(const std::vector<int32_t>& axis, double x) {
  if (axis.size() == 1) return {};
  const auto above = std::upper_bound(axis.begin() + 1, axis.end() - 1, x);
  const size_t low = size_t(above - axis.begin()) - 1;
  return {low, (x - axis[low]) / (axis[low + 1] - axis[low])};
}

class TableModel final : public CostModel {
 public:
  explicit TableModel(const CostTable& table) : t_(table) {}

  StepCost Of(const StepPlan& plan) const override {
    const double extra = plan.num_tokens - plan.num_rows;
    double keys = 0;
    for (int32_t row = 0; row < plan.num_rows; ++row) {
      const int32_t end = plan.seq_len[row];
      keys += KeysSeen(end - (plan.query_start[row + 1] - plan.query_start[row]), end, 0);
    }
    // The context at which a step of the table would show its tokens as many keys.
    const double own = plan.num_rows - 1 + (extra + 1) * (extra + 2) / 2;
    const double context = std::max(0.0, (keys - own) / plan.num_tokens);
    const Place r = Find(t_.rows, plan.num_rows);
    const Place e = Find(t_.extra, extra);
    const Place c = Find(t_.context, context);
    double seconds = 0;
    for (size_t corner = 0; corner < 8; ++corner) {
      const size_t dr = corner & 1, de = corner >> 1 & 1, dc = corner >> 2;
      const double weight = Weight(r, dr) * Weight(e, de) * Weight(c, dc);
      if (weight != 0) seconds += weight * At(r.low + dr, e.low + de, c.low + dc);
    }
    // Extrapolating downwards may cross zero; nothing is faster than the fastest step measured.
    return {std::max(seconds, fastest_), 0, 0};
  }

 private:
  static double Weight(const Place& p, size_t upper) { return upper ? p.share : 1 - p.share; }
  double At(size_t r, size_t e, size_t c) const {
    return t_.seconds[(r * t_.extra.size() + e) * t_.context.size() + c];
  }

  CostTable t_;
  double fastest_ = *std::min_element(t_.seconds.begin(), t_.seconds.end());
};

Status CheckAxis(const char* name, const std::vector<int32_t>& axis, int32_t low) {
  bool rising = !axis.empty() && axis[0] >= low;
  for (size_t i = 1; i < axis.size(); ++i) rising = rising && axis[i] > axis[i - 1];
  if (rising) return Status::Ok();
  return Status::InvalidArgument(
      StrCat(name, " of the cost table must hold rising numbers, the first at least ", low));
}

}  // namespace

Status Validate(const Roofline& r) {
  const struct {
    const char* field;
    double value;
    bool positive;
  } numbers[] = {
      {"weight_bytes", r.weight_bytes, false},
      {"flops_of_a_token", r.flops_of_a_token, false},
      {"flops_of_a_sample", r.flops_of_a_sample, false},
      {"bytes_per_second", r.bytes_per_second, true},
      {"flops_per_second", r.flops_per_second, true},
      {"step_seconds", r.step_seconds, false},
      {"row_seconds", r.row_seconds, false},
  };
  for (const auto& n : numbers) {
    if (std::isfinite(n.value) && (n.value > 0 || (n.value == 0 && !n.positive))) continue;
    return Status::InvalidArgument(StrCat(n.field, "=", n.value, " is out of range: give a ",
                                          n.positive ? "positive number" : "number from 0 on"));
  }
  for (const AttentionCost& a : r.attention) {
    if (a.window >= 0 && a.key_bytes >= 0 && a.flops_of_a_key >= 0) continue;
    return Status::InvalidArgument("attention holds a negative window or cost");
  }
  return Status::Ok();
}

std::unique_ptr<CostModel> MakeRoofline(const Roofline& roofline) {
  return std::make_unique<RooflineModel>(roofline);
}

Status Validate(const CostTable& table) {
  if (Status s = CheckAxis("rows", table.rows, 1); !s.ok()) return s;
  if (Status s = CheckAxis("extra", table.extra, 0); !s.ok()) return s;
  if (Status s = CheckAxis("context", table.context, 0); !s.ok()) return s;
  const size_t cells = table.rows.size() * table.extra.size() * table.context.size();
  if (table.seconds.size() != cells) {
    return Status::InvalidArgument(StrCat("seconds of the cost table has ", table.seconds.size(),
                                          " entries, its axes ask for ", cells));
  }
  for (double s : table.seconds) {
    if (!(s > 0 && std::isfinite(s))) {
      return Status::InvalidArgument(
          StrCat("seconds of the cost table holds ", s, ": a step takes some time, and an end"));
    }
  }
  return Status::Ok();
}

std::unique_ptr<CostModel> MakeTable(const CostTable& table) {
  return std::make_unique<TableModel>(table);
}

}  // namespace octavo::sim

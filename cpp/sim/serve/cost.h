// CostModel: how long a step takes, without running it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "octavo/status.h"
#include "octavo/step.h"

namespace octavo::sim {

struct StepCost {
  double seconds = 0;
  // Shares of the device's bandwidth and arithmetic that the step uses; 0 where nobody knows.
  double bandwidth_use = 0;
  double compute_use = 0;
};

class CostModel {
 public:
  virtual ~CostModel() = default;
  virtual StepCost Of(const StepPlan& plan) const = 0;
};

// Layers that see the same part of the past, in what one token costs them.
struct AttentionCost {
  int32_t window = 0;         // tokens; 0: all
  double key_bytes = 0;       // keys and values of one token, read by each row that sees it
  double flops_of_a_key = 0;  // of one query
};

// A step takes as long as its bytes or its arithmetic, whichever is longer, and what launching it
// costs. Rates are what the device reaches, not what its maker promises.
struct Roofline {
  double weight_bytes = 0;       // read once a step
  double flops_of_a_token = 0;   // of the layers' matrices
  double flops_of_a_sample = 0;  // of the head
  std::vector<AttentionCost> attention;
  double bytes_per_second = 0;
  double flops_per_second = 0;
  double step_seconds = 0;  // launch, synchronisation, host work that nothing hides
  double row_seconds = 0;
};
// Names the first number that is out of range.
Status Validate(const Roofline& roofline);
// REQUIRES: Validate(roofline).ok().
std::unique_ptr<CostModel> MakeRoofline(const Roofline& roofline);

// Measured steps on a grid: `rows` rows, one of which computes `extra` tokens more than the one
// that each computes, all with `context` tokens before. Between the points linear, beyond them too.
struct CostTable {
  std::vector<int32_t> rows, extra, context;  // rising
  std::vector<double> seconds;                // [rows][extra][context]
};
// Names what is wrong with the table.
Status Validate(const CostTable& table);
// REQUIRES: Validate(table).ok().
std::unique_ptr<CostModel> MakeTable(const CostTable& table);

}  // namespace octavo::sim

// A life whose operations the fuzzer writes: eight bytes choose the configuration, then each five
// are an operation and its argument. Coverage leads it to meetings that a drawn life rarely has.
#include "sim/fuzz/life.h"

#include <memory>

#include "fuzz/bytes.h"
#include "fuzz/targets.h"

namespace octavo::fuzz {
namespace {

constexpr int kMostOps = 400;
constexpr int32_t kNumChosen = int32_t(sim::OpKind::kQueueFull);  // the kinds that can be asked for

sim::Scenario ReadScenario(Bytes bytes) {
  sim::Scenario scenario;
  scenario.config_seed = bytes.Word(8);
  while (!bytes.empty() && scenario.ops.size() < size_t{kMostOps}) {
    const auto kind = sim::OpKind(bytes.Below(kNumChosen));
    scenario.ops.push_back({kind, bytes.Word(4)});
  }
  return scenario;
}

}  // namespace

void Life(Input input) {
  const sim::Scenario scenario = ReadScenario(Bytes(input));
  sim::OpCounts counts = {};
  sim::Life life(scenario.config_seed, &counts);
  for (const sim::Op& op : scenario.ops) life.Apply(op);
  life.Drain();
}

}  // namespace octavo::fuzz

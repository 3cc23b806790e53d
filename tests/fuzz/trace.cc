// What the reader of scenario files accepts, it writes and reads again the same; what it refuses,
// it refuses with words.
#include <string_view>

#include "base/check.h"
#include "fuzz/targets.h"
#include "sim/fuzz/op.h"

namespace octavo::fuzz {

void Trace(Input input) {
  const std::string_view text(reinterpret_cast<const char*>(input.data()), input.size());
  const auto scenario = sim::ScenarioFromText(text);
  if (!scenario.ok()) {
    OCTAVO_CHECK(!scenario.status().message().empty(), "a refusal says why");
    return;
  }
  const auto again = sim::ScenarioFromText(sim::ToText(*scenario));
  OCTAVO_CHECK(again.ok(), "what was written is read");
  OCTAVO_CHECK(again->config_seed == scenario->config_seed && again->ops == scenario->ops,
               "and says the same");
  for (const sim::Op& op : scenario->ops) {
    OCTAVO_CHECK(op.argument <= sim::kMaxArgument, "an argument fits what operations do with it");
  }
}

}  // namespace octavo::fuzz

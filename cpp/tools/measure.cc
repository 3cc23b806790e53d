// Numbers out: percentiles, the table and the JSON of octavo-bench.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "tools/bench.h"

namespace octavo::tools {

double Percentile(std::vector<double>* samples, double share) {
  const size_t at = std::min(samples->size() - 1, size_t(share * double(samples->size())));
  std::nth_element(samples->begin(), samples->begin() + std::ptrdiff_t(at), samples->end());
  return (*samples)[at];
}

void KeepBest(Measures* all, const Measures& more) {
  for (const Measure& m : more) {
    const auto same = std::find_if(all->begin(), all->end(),
                                   [&](const Measure& other) { return other.name == m.name; });
    if (same == all->end()) {
      all->push_back(m);
    } else {
      // Rates are better when larger; they have no budget.
      const bool rate = std::string(m.unit).find("/s") != std::string::npos;
      same->value = rate ? std::max(same->value, m.value) : std::min(same->value, m.value);
    }
  }
}

bool OverBudget(const Measures& measures, double slack) {
  return std::any_of(measures.begin(), measures.end(),
                     [&](const Measure& m) { return m.binding && m.value > m.budget * slack; });
}

std::string Table(const Measures& measures) {
  std::string text = "measure                                      value  unit          budget\n";
  for (const Measure& m : measures) {
    char line[160];
    std::snprintf(line, sizeof(line), "%-40s %9.2f  %-10s", m.name.c_str(), m.value, m.unit);
    text += line;
    if (std::isfinite(m.budget)) {
      const char* verdict = m.value <= m.budget ? "ok" : m.binding ? "OVER" : "missed";
      std::snprintf(line, sizeof(line), " %9.2f  %s%s", m.budget, verdict,
                    m.binding ? "" : " (aim)");
      text += line;
    }
    text += '\n';
  }
  return text;
}

std::string Json(const Measures& measures) {
  std::string text = "{\"measures\": [\n";
  for (size_t i = 0; i < measures.size(); ++i) {
    const Measure& m = measures[i];
    char line[256];
    std::snprintf(line, sizeof(line), "  {\"name\": \"%s\", \"value\": %.4g, \"unit\": \"%s\"",
                  m.name.c_str(), m.value, m.unit);
    text += line;
    if (std::isfinite(m.budget)) {
      std::snprintf(line, sizeof(line), ", \"%s\": %.4g, \"ok\": %s", m.binding ? "budget" : "aim",
                    m.budget, m.value <= m.budget ? "true" : "false");
      text += line;
    }
    text += i + 1 < measures.size() ? "},\n" : "}\n";
  }
  return text + "]}\n";
}

}  // namespace octavo::tools

// Fits the constants of WideRates (cuda/linear/wgmma_choice.h) to what `bench_linear all` printed:
// so that the tile and cut which ChooseWide would take are not much slower than the fastest one.
// Prints the constants, and how much slower before and after. Needs no device.
//
//   bench_fit_linear < sweep.txt
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "linear/wgmma_choice.h"

namespace octavo::cuda {
namespace {

constexpr int kMultiprocessors = 132;  // of an H200
constexpr int kSteps = 60000;
constexpr double kWidths[] = {0.02, 0.1, 0.5};  // of a step, as a logarithm
constexpr double kPriceOfMisjudging = 0.1;      // beside a choice that is slower by as much

struct Tried {
  WideChoice choice;
  double us;
};
struct Group {
  std::string name;
  WideProblem problem;
  std::vector<Tried> tried;
};

std::vector<Group> Read(std::istream& in) {
  std::map<std::pair<std::string, int64_t>, Group> groups;
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string name, what;
    WideProblem p;
    Tried t;
    int gated = 0, add = 0;
    double rate = 0.0;
    words >> name >> p.m >> p.n >> p.k >> gated >> add >> t.choice.rows >> t.choice.tokens >>
        t.choice.splits >> t.choice.stages >> t.choice.clusters >> t.us >> rate >> what;
    if (!words || what != "tried") continue;
    p.gated = gated != 0;
    p.add = add != 0;
    // ChooseWide knows one number of clusters for a tile and cut.
    if (t.choice.clusters != WideClusters(t.choice, p, kMultiprocessors)) continue;
    Group& g = groups[{name, p.m}];
    g.name = name;
    g.problem = p;
    g.tried.push_back(t);
  }
  std::vector<Group> all;
  for (auto& [key, group] : groups) all.push_back(std::move(group));
  return all;
}

// By how much what these constants choose is slower than the fastest, as a factor.
double Slower(const Group& g, const WideRates& rates) {
  double least = 0.0, us = 0.0, fastest = 0.0;
  for (const Tried& t : g.tried) {
    const double cost = WideCost(t.choice, g.problem, kMultiprocessors, rates);
    // Rings of two depths cost the same: the deeper one is taken.
    if (us == 0.0 || cost < least) {
      least = cost;
      us = t.us;
    }
    if (fastest == 0.0 || t.us < fastest) fastest = t.us;
  }
  return us / fastest;
}

double Loss(const std::vector<Group>& groups, const WideRates& rates) {
  double loss = 0.0;
  for (const Group& g : groups) {
    double misjudged = 0.0;
    for (const Tried& t : g.tried) {
      const double cost = WideCost(t.choice, g.problem, kMultiprocessors, rates) / 1000.0;
      misjudged += std::fabs(std::log(cost / t.us));
    }
    loss += std::log(Slower(g, rates)) +
            kPriceOfMisjudging * misjudged / static_cast<double>(g.tried.size());
  }
  return loss / static_cast<double>(groups.size());
}

std::vector<std::pair<const char*, double*>> Named(WideRates* r) {
  return {{"memory", &r->memory},     {"cache", &r->cache},     {"port", &r->port},
          {"products", &r->products}, {"block", &r->block},     {"start", &r->start},
          {"tile", &r->tile},         {"store", &r->store},     {"gate", &r->gate},
          {"add", &r->add},           {"cluster", &r->cluster}, {"exchange", &r->exchange}};
}

WideRates Fit(const std::vector<Group>& groups) {
  std::mt19937 rng(1);
  std::normal_distribution<double> step;
  WideRates best;
  double least = Loss(groups, best);
  for (int i = 0; i < kSteps; ++i) {
    WideRates next = best;
    const double width = kWidths[rng() % std::size(kWidths)];
    for (const auto& [name, value] : Named(&next)) {
      if (rng() % 3 == 0) *value *= std::exp(width * step(rng));
    }
    const double loss = Loss(groups, next);
    if (loss >= least) continue;
    least = loss;
    best = next;
  }
  return best;
}

void Print(const std::vector<Group>& groups, WideRates rates, const char* when) {
  std::printf("%s: loss %.4f\n", when, Loss(groups, rates));
  for (const auto& [name, value] : Named(&rates)) std::printf("  %-8s %.4g\n", name, *value);
  double sum = 0.0, most = 0.0;
  for (const Group& g : groups) {
    const double slower = Slower(g, rates);
    sum += slower - 1.0;
    most = std::max(most, slower - 1.0);
    if (slower > 1.05) {
      std::printf("  %-12s %4d rows: %.1f %% slower than the fastest\n", g.name.c_str(),
                  static_cast<int>(g.problem.m), 100.0 * (slower - 1.0));
    }
  }
  std::printf("  slower than the fastest by %.1f %% on average, %.1f %% at most\n",
              100.0 * sum / static_cast<double>(groups.size()), 100.0 * most);
}

}  // namespace
}  // namespace octavo::cuda

int main() {
  using namespace octavo::cuda;
  const std::vector<Group> groups = Read(std::cin);
  if (groups.empty()) {
    std::fprintf(stderr, "no lines of `bench_linear all` on standard input\n");
    return 1;
  }
  Print(groups, WideRates{}, "now");
  Print(groups, Fit(groups), "fitted");
  return 0;
}

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
constexpr int kSteps = 30000;
constexpr double kWidths[] = {0.02, 0.1, 0.5};      // of a step, as a logarithm
constexpr double kPriceOfMisjudging = 0.1;          // beside a choice that is slower by as much
constexpr double kAlmost = 0.012;                   // as a logarithm
constexpr double kMuch = 0.05, kPriceOfMuch = 2.0;  // what a choice is slower than this costs more
constexpr int kStarts = 2;

struct Tried {
  WideChoice choice;
  double us;
  bool compared;  // by ChooseWide, which knows two numbers of clusters for a tile and cut
  bool shallow;   // its ring: the deeper one has been tried before
};
struct Group {
  std::string name;
  WideProblem problem;
  std::vector<Tried> tried;
};

bool Same(const WideChoice& a, const WideChoice& b) {
  return a.rows == b.rows && a.tokens == b.tokens && a.splits == b.splits &&
         a.clusters == b.clusters;
}

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
    const WideClusters clusters = WideClustersOf(t.choice, p, kMultiprocessors);
    Group& g = groups[{name, p.m}];
    t.shallow = !g.tried.empty() && Same(g.tried.back().choice, t.choice);
    t.compared = t.choice.clusters == clusters.most || t.choice.clusters == clusters.even;
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
    if (fastest == 0.0 || t.us < fastest) fastest = t.us;
    if (!t.compared || t.shallow) continue;
    const double cost = WideCost(t.choice, g.problem, kMultiprocessors, rates);
    if (us == 0.0 || cost < least) {
      least = cost;
      us = t.us;
    }
  }
  return us / fastest;
}

// What is to be small of a group. A choice counts as slow as those that cost almost as much: so no
// constant has to be exact.
double Loss(const Group& g, const WideRates& rates) {
  std::vector<double> costs;
  double fastest = g.tried.front().us, least = HUGE_VAL;
  for (const Tried& t : g.tried) {
    fastest = std::min(fastest, t.us);
    costs.push_back(WideCost(t.choice, g.problem, kMultiprocessors, rates) / 1000.0);
    if (t.compared) least = std::min(least, costs.back());
  }
  double slower = 0.0, shares = 0.0, misjudged = 0.0, weights = 0.0;
  for (size_t i = 0; i < g.tried.size(); ++i) {
    const Tried& t = g.tried[i];
    if (!t.compared || t.shallow) continue;
    const double share = std::pow(least / costs[i], 1.0 / kAlmost);
    slower += share * std::log(t.us / fastest);
    shares += share;
    const double weight = fastest * fastest / (t.us * t.us);  // the slow ones matter less
    misjudged += weight * std::fabs(std::log(costs[i] / t.us));
    weights += weight;
  }
  slower /= shares;
  return slower + kPriceOfMuch * std::max(0.0, slower - kMuch) +
         kPriceOfMisjudging * misjudged / weights;
}

double Loss(const std::vector<Group>& groups, const WideRates& rates) {
  double loss = 0.0;
  for (const Group& g : groups) loss += Loss(g, rates);
  return loss / static_cast<double>(groups.size());
}

std::vector<std::pair<const char*, double*>> Named(WideRates* r) {
  return {{"memory", &r->memory}, {"fewer", &r->fewer},       {"cache", &r->cache},
          {"port", &r->port},     {"outside", &r->outside},   {"products", &r->products},
          {"block", &r->block},   {"tile", &r->tile},         {"store", &r->store},
          {"gate", &r->gate},     {"exchange", &r->exchange}, {"cluster", &r->cluster}};
}

WideRates Fit(const std::vector<Group>& groups, unsigned seed) {
  std::mt19937 rng(seed);
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
  WideRates best;
  for (unsigned seed = 1; seed <= kStarts; ++seed) {
    const WideRates fitted = Fit(groups, seed);
    if (Loss(groups, fitted) < Loss(groups, best)) best = fitted;
  }
  Print(groups, best, "fitted");
  return 0;
}

// octavo-bench: how fast the core is, and whether that is within its budgets.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "tools/bench.h"

namespace octavo::tools {
namespace {

constexpr const char* kUsage =
    "usage: octavo-bench [--check] [--slack FACTOR] [--json] [--quick] [--only SUITE]\n"
    "\n"
    "Measures the control plane (schedule, finish, admission, prefix lookup, blocks, hash, heap\n"
    "allocations) and CPU attention. Times are the best of several rounds.\n"
    "\n"
    "  --check       exit with 1 when a budget is exceeded (tries three times before it says so)\n"
    "  --slack X     let times exceed their budgets by this factor (1 to 2) before --check fails: "
    "for\n"
    "                machines that do other work too\n"
    "  --json        print JSON instead of a table\n"
    "  --quick       fewer rounds and smaller pools; the numbers are not the ones to quote\n"
    "  --only SUITE  decode, mixes, admission, allocations, lookup, blocks, hash or attention\n";

struct Suite {
  const char* name;
  Measures (*run)(const Effort&);
};

constexpr Suite kSuites[] = {
    {"decode", BenchDecode},       {"mixes", BenchMixes},
    {"admission", BenchAdmission}, {"allocations", BenchAllocations},
    {"lookup", BenchLookup},       {"blocks", BenchBlocks},
    {"hash", BenchHash},           {"attention", BenchAttention},
};
constexpr int kAttempts = 3;

struct Arguments {
  bool check = false;
  bool json = false;
  bool help = false;
  double slack = 1;
  Effort effort;
  std::string only;
  std::string wrong;
};

Arguments Parse(int argc, char** argv) {
  Arguments a;
  for (int i = 1; i < argc; ++i) {
    const std::string_view arg = argv[i];
    if (arg == "--check") {
      a.check = true;
    } else if (arg == "--json") {
      a.json = true;
    } else if (arg == "--slack" && i + 1 < argc) {
      a.slack = std::atof(argv[++i]);
      if (!(a.slack >= 1 && a.slack <= 2)) {
        a.wrong = "--slack " + std::string(argv[i]) + ": give a factor from 1 to 2";
      }
    } else if (arg == "--quick") {
      a.effort = {2, true};
    } else if (arg == "--help" || arg == "-h") {
      a.help = true;
    } else if (arg == "--only" && i + 1 < argc) {
      a.only = argv[++i];
    } else {
      a.wrong = "unknown or incomplete option: " + std::string(arg);
    }
  }
  bool known = a.only.empty();
  for (const Suite& suite : kSuites) known = known || a.only == suite.name;
  if (!known) a.wrong = "--only " + a.only + ": there is no such suite";
  return a;
}

int Main(int argc, char** argv) {
  const Arguments a = Parse(argc, argv);
  if (a.help) {
    std::fputs(kUsage, stdout);
    return 0;
  }
  if (!a.wrong.empty()) {
    std::fprintf(stderr, "octavo-bench: %s\n%s", a.wrong.c_str(), kUsage);
    return 2;
  }
  Measures all;
  for (const Suite& suite : kSuites) {
    if (!a.only.empty() && a.only != suite.name) continue;
    Measures best;
    for (int attempt = 0; attempt < kAttempts; ++attempt) {
      KeepBest(&best, suite.run(a.effort));
      if (!a.check || !OverBudget(best, a.slack)) break;
    }
    all.insert(all.end(), best.begin(), best.end());
  }
  std::fputs((a.json ? Json(all) : Table(all)).c_str(), stdout);
  return a.check && OverBudget(all, a.slack) ? 1 : 0;
}

}  // namespace
}  // namespace octavo::tools

int main(int argc, char** argv) { return octavo::tools::Main(argc, argv); }

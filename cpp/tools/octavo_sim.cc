// octavo-sim: lives of the engine under faults, by the million; and one of them again.
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>

#include "base/strcat.h"
#include "sim/fuzz/generate.h"
#include "sim/fuzz/isolate.h"
#include "sim/fuzz/shrink.h"

namespace octavo::tools {
namespace {

constexpr const char* kUsage =
    "usage: octavo-sim fuzz [--steps N] [--seed S] [--jobs N] [--least N] [--out FILE]\n"
    "       octavo-sim replay FILE\n"
    "\n"
    "fuzz runs the real engine under random load and faults, with its invariants on, and compares\n"
    "each request's tokens with what the request gets alone. A failure is shrunk and written to\n"
    "FILE. The last line gives the seed at which a later run goes on.\n"
    "\n"
    "  --steps N   engine steps over all jobs (default 1000000)\n"
    "  --seed S    the first seed (default 1)\n"
    "  --jobs N    processes (default 1)\n"
    "  --least N   exit with 1 when a kind of fault struck less often (default 0)\n"
    "  --quiet     the last line only; else progress goes to stderr every ten seconds\n"
    "  --out FILE  where a failing scenario goes (default octavo-sim.failed)\n";

struct Arguments {
  std::string command;
  sim::Campaign campaign;
  uint64_t least = 0;
  bool quiet = false;
  std::string file = "octavo-sim.failed";
  std::string wrong;
};

template <typename T>
bool ParseNumber(std::string_view text, T low, T* value) {
  const auto result = std::from_chars(text.data(), text.data() + text.size(), *value);
  return result.ec == std::errc() && result.ptr == text.data() + text.size() && *value >= low;
}

bool ParseOption(std::string_view name, std::string_view value, Arguments* a) {
  if (name == "--steps") return ParseNumber<uint64_t>(value, 1, &a->campaign.steps);
  if (name == "--seed") return ParseNumber<uint64_t>(value, 0, &a->campaign.first_seed);
  if (name == "--jobs") return ParseNumber<int32_t>(value, 1, &a->campaign.jobs);
  if (name == "--least") return ParseNumber<uint64_t>(value, 0, &a->least);
  if (name == "--out") a->file = value;
  return name == "--out";
}

Arguments Parse(int argc, char** argv) {
  Arguments a;
  if (argc > 1) a.command = argv[1];
  if (a.command == "replay" && argc == 3) {
    a.file = argv[2];
    return a;
  }
  if (a.command != "fuzz") a.wrong = "give fuzz, or replay and a file";
  for (int i = 2; i < argc && a.wrong.empty(); ++i) {
    if (std::string_view(argv[i]) == "--quiet") {
      a.quiet = true;
    } else if (i + 1 == argc || !ParseOption(argv[i], argv[i + 1], &a)) {
      a.wrong = StrCat("unknown or wrong option: ", argv[i], i + 1 < argc ? " " : "",
                       i + 1 < argc ? argv[i + 1] : "");
    } else {
      ++i;
    }
  }
  return a;
}

int ShrinkAndWrite(uint64_t seed, const Arguments& a) {
  const sim::Scenario scenario = sim::MakeScenario(seed, a.campaign.length);
  const sim::Verdict verdict = sim::RunIsolated(scenario);
  std::printf("seed %llu failed: %s\n", static_cast<unsigned long long>(seed),
              verdict.ok ? "but not when run again" : verdict.failure.c_str());
  if (verdict.ok) return 1;
  const sim::Scenario shrunk = sim::ShrinkFailure(scenario, verdict.failure);
  std::ofstream(a.file) << ToText(shrunk);
  std::printf("shrunk from %zu to %zu operations: octavo-sim replay %s\n", scenario.ops.size(),
              shrunk.ops.size(), a.file.c_str());
  return 1;
}

void ShowProgress(const sim::CampaignResult& r, const sim::Campaign& c) {
  const double share = double(r.steps) / double(c.steps);
  std::fprintf(stderr, "octavo-sim: %5.1f %%, %llu steps, %llu lives, %.0f s, %.0f s left\n",
               100 * share, static_cast<unsigned long long>(r.steps),
               static_cast<unsigned long long>(r.lives), r.seconds,
               share > 0 ? r.seconds / share - r.seconds : 0.0);
}

int Fuzz(const Arguments& a) {
  sim::Campaign campaign = a.campaign;
  if (!a.quiet) {
    campaign.report = [&](const sim::CampaignResult& r) { ShowProgress(r, a.campaign); };
    campaign.report_seconds = 10;
  }
  const sim::CampaignResult r = sim::RunCampaign(campaign);
  size_t kinds = 0;
  sim::OpKind rarest = sim::OpKind::kAbortWaiting;
  for (size_t i = 0; i < sim::kNumOps; ++i) {
    const sim::OpKind kind{static_cast<uint8_t>(i)};
    if (!a.quiet) {
      std::printf("%-22s %12llu\n", std::string(Name(kind)).c_str(),
                  static_cast<unsigned long long>(r.counts[i]));
    }
    if (!IsFault(kind)) continue;
    ++kinds;
    if (r.counts[i] < r.counts[size_t(rarest)]) rarest = kind;
  }
  const uint64_t rarest_count = r.counts[size_t(rarest)];
  std::printf(
      "octavo-sim: %s, seeds %llu to %llu, %llu lives, %llu steps, %.0f steps a second of a core, "
      "%.1f s, %zu kinds of faults, rarest %s %llu times\n",
      r.ok ? "0 violations" : "FAILED", static_cast<unsigned long long>(a.campaign.first_seed),
      static_cast<unsigned long long>(r.next_seed - 1), static_cast<unsigned long long>(r.lives),
      static_cast<unsigned long long>(r.steps), double(r.steps) / std::max(r.cpu_seconds, 1e-9),
      r.seconds, kinds, std::string(Name(rarest)).c_str(),
      static_cast<unsigned long long>(rarest_count));
  if (!r.ok) return ShrinkAndWrite(r.failed_seed, a);
  return rarest_count < a.least ? 1 : 0;
}

int Replay(const std::string& file) {
  std::ifstream in(file);
  if (!in) {
    std::fprintf(stderr, "octavo-sim: cannot read %s\n", file.c_str());
    return 2;
  }
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const auto scenario = sim::ScenarioFromText(text);
  if (!scenario.ok()) {
    std::fprintf(stderr, "octavo-sim: %s: %s\n", file.c_str(), scenario.status().message().c_str());
    return 2;
  }
  const sim::Verdict verdict = sim::RunIsolated(*scenario);
  std::printf("%zu of %zu operations: %s\n", verdict.ops_done, scenario->ops.size(),
              verdict.ok ? "0 violations" : verdict.failure.c_str());
  return verdict.ok ? 0 : 1;
}

int Main(int argc, char** argv) {
  if (argc > 1 && (std::string_view(argv[1]) == "--help" || std::string_view(argv[1]) == "-h")) {
    std::fputs(kUsage, stdout);
    return 0;
  }
  const Arguments a = Parse(argc, argv);
  if (!a.wrong.empty()) {
    std::fprintf(stderr, "octavo-sim: %s\n%s", a.wrong.c_str(), kUsage);
    return 2;
  }
  return a.command == "replay" ? Replay(a.file) : Fuzz(a);
}

}  // namespace
}  // namespace octavo::tools

int main(int argc, char** argv) { return octavo::tools::Main(argc, argv); }

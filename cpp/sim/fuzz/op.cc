#include "sim/fuzz/op.h"

#include <charconv>
#include <sstream>

#include "base/strcat.h"

namespace octavo::sim {
namespace {

constexpr std::string_view kNames[] = {
    "submit",
    "begin",
    "run",
    "finish",
    "tick",
    "check",
    "draft",
    "abort_waiting",
    "abort_running",
    "abort_in_flight",
    "abort_preempted",
    "abort_storm",
    "stop_string",
    "abort_twice",
    "unknown_id",
    "stale_id",
    "slow_step",
    "clock_jump",
    "fail_step",
    "fail_two_steps",
    "nan_row",
    "nan_at_prefill_end",
    "token_out_of_range",
    "wrong_step",
    "wrong_order",
    "wrong_count",
    "finish_twice",
    "begin_when_full",
    "empty_prompt",
    "long_prompt",
    "bad_token",
    "bad_number",
    "bad_list",
    "bad_draft",
    "herd",
    "salt_mix",
    "priority_flood",
    "prompt_at_limit",
    "one_token",
    "endless_request",
    "duplicate_request",
    "reset_cache",
    "draft_junk",
    "pause_new",
    "pause_all",
    "resume",
    "bad_item",
    "item_herd",
    "fail_encode",
    "nan_item",
    "reset_encoder",
    "slow_reader",
    "lost_batch",
    "reader_restart",
    "nan_token",
    "queue_full",
    "reset_refused",
    "preemption",
    "preemption_storm",
    "late_run",
    "nothing_to_plan",
    "item_evicted",
    "item_shared",
    "item_split",
    "nan_spreads",
    "events_dropped",
    "retention_ends",
    "lookup_draft",
    "drafts_rejected",
    "block_copied",
    "tier_store",
    "tier_load",
    "tier_eviction",
    "tier_failure",
    "load_unknown",
    "load_refused",
    "load_failed",
    "load_partial",
    "load_lost",
    "load_ends_request",
    "save_lost",
    "transfer_late",
    "report_repeated",
    "report_unknown",
    "cancel_refused",
    "connector_death",
    "corrupt",
    "corrupt_item",
};
static_assert(sizeof(kNames) / sizeof(kNames[0]) == kNumOps, "every kind has its name");

constexpr std::string_view kHeader = "octavo-sim 1";
constexpr size_t kMostShown = 80;  // characters of a line that is no operation

bool ParseNumber(std::string_view text, uint64_t* value) {
  const char* end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, *value);
  return result.ec == std::errc() && result.ptr == end;
}

bool ParseKind(std::string_view text, OpKind* kind) {
  for (size_t i = 0; i < kNumOps; ++i) {
    if (kNames[i] != text || IsObserved(OpKind(i))) continue;
    *kind = OpKind(i);
    return true;
  }
  return false;
}

}  // namespace

std::string_view Name(OpKind kind) { return kNames[size_t(kind)]; }

std::string ToText(const Scenario& scenario) {
  std::string text = StrCat(kHeader, "\nconfig ", scenario.config_seed, "\n");
  for (const Op& op : scenario.ops) {
    text += StrCat(Name(op.kind), " ", op.argument, "\n");
  }
  return text;
}

Result<Scenario> ScenarioFromText(std::string_view text) {
  Scenario scenario;
  std::istringstream lines{std::string(text)};
  std::string line;
  if (!std::getline(lines, line) || line != kHeader) {
    return Status::InvalidArgument(StrCat("the first line is not \"", kHeader, "\""));
  }
  for (int number = 2; std::getline(lines, line); ++number) {
    if (line.empty() || line[0] == '#') continue;
    const size_t space = line.find(' ');
    const std::string_view name = std::string_view(line).substr(0, space);
    uint64_t argument = 0;
    const bool has_argument = space != std::string::npos &&
                              ParseNumber(std::string_view(line).substr(space + 1), &argument);
    OpKind kind;
    if (has_argument && name == "config") {
      scenario.config_seed = argument;
    } else if (has_argument && argument <= kMaxArgument && ParseKind(name, &kind)) {
      scenario.ops.push_back({kind, argument});
    } else {
      return Status::InvalidArgument(
          StrCat("line ", number, " is \"", line.substr(0, kMostShown),
                 "\": give an operation and a number below 4294967296, as in \"begin 0\""));
    }
  }
  return scenario;
}

}  // namespace octavo::sim

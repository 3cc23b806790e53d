#include "sched/trace.h"

#include <deque>
#include <fstream>
#include <functional>
#include <sstream>

#include "base/strcat.h"

namespace octavo::sched {
namespace {

using Words = std::vector<std::string>;

// What a sample yields when the trace names nothing else.
constexpr int32_t kPlainToken = 49;

Words Split(const std::string& line, char separator) {
  Words words;
  std::string word;
  std::istringstream in(line);
  while (std::getline(in, word, separator)) {
    if (!word.empty()) words.push_back(word);
  }
  return words;
}

std::string Join(const Words& words, size_t first) {
  std::string text;
  for (size_t i = first; i < words.size(); ++i) text += (i > first ? " " : "") + words[i];
  return text;
}

struct KeyValue {
  std::string key, value;
  int32_t number() const { return std::stoi(value); }
};

KeyValue Parse(const std::string& word) {
  const size_t at = word.find('=');
  if (at == std::string::npos) return {word, ""};
  return {word.substr(0, at), word.substr(at + 1)};
}

std::vector<int32_t> Ids(const std::string& list) {
  std::vector<int32_t> ids;
  for (const std::string& id : Split(list, ',')) ids.push_back(std::stoi(id));
  return ids;
}

std::string Text(const std::vector<int32_t>& ids) {
  std::string text;
  for (int32_t id : ids) text += (text.empty() ? "" : ",") + std::to_string(id);
  return text.empty() ? "none" : text;
}

const char* Name(FinishReason reason) {
  constexpr const char* kNames[] = {"none", "stop", "length", "abort", "error"};
  return kNames[static_cast<int>(reason)];
}

bool SetField(EngineConfig* c, const KeyValue& kv) {
  const std::map<std::string, int32_t*> numbers = {
      {"num_blocks", &c->num_blocks},
      {"block_size", &c->block_size},
      {"max_model_len", &c->max_model_len},
      {"max_num_seqs", &c->max_num_seqs},
      {"max_num_batched_tokens", &c->max_num_batched_tokens},
      {"max_queued_requests", &c->max_queued_requests},
      {"long_prefill_token_threshold", &c->long_prefill_token_threshold},
      {"max_overtakes", &c->max_overtakes},
      {"max_steps_in_flight", &c->max_steps_in_flight},
      {"max_draft_tokens", &c->max_draft_tokens},
      {"prompt_lookup_min", &c->prompt_lookup_min},
      {"prompt_lookup_max", &c->prompt_lookup_max},
  };
  const std::map<std::string, bool*> flags = {
      {"enable_prefix_caching", &c->enable_prefix_caching},
      {"enable_chunked_prefill", &c->enable_chunked_prefill},
      {"full_prompt_gate", &c->full_prompt_gate},
  };
  if (const auto at = numbers.find(kv.key); at != numbers.end()) {
    *at->second = kv.number();
  } else if (const auto flag = flags.find(kv.key); flag != flags.end()) {
    *flag->second = kv.value == "on";
  } else if (kv.key == "policy") {
    c->policy = kv.value == "priority" ? SchedulingPolicy::kPriority : SchedulingPolicy::kFcfs;
  } else if (kv.key == "victim") {
    c->victim = kv.value == "last" ? VictimPolicy::kLast : VictimPolicy::kCost;
  } else if (kv.key == "priority_aging_ms") {
    c->priority_aging_ms = kv.number();
  } else if (kv.key == "watermark") {
    c->watermark = std::stod(kv.value);
  } else {
    return false;
  }
  return true;
}

bool SetParam(SamplingParams* p, const KeyValue& kv) {
  if (kv.key == "max") {
    p->max_tokens = kv.number();
  } else if (kv.key == "min") {
    p->min_tokens = kv.number();
  } else if (kv.key == "eos") {
    p->eos_token_ids = Ids(kv.value);
  } else if (kv.key == "stop") {
    p->stop_token_ids = Ids(kv.value);
  } else if (kv.key == "ignore_eos") {
    p->ignore_eos = true;
  } else if (kv.key == "penalty") {
    p->presence_penalty = 1.0f;
  } else if (kv.key == "scores") {
    p->num_prompt_logprobs = 0;
  } else {
    return false;
  }
  return true;
}

}  // namespace

std::vector<std::string> TraceRunner::RunFile(const std::string& path) {
  std::vector<std::string> wrong;
  std::ifstream file(path);
  if (!file) return {path + ": cannot be read"};
  std::string line;
  std::string title;
  bool skip = false;
  for (int number = 1; std::getline(file, line); ++number) {
    const Words words = Split(line.substr(0, line.find('#')), ' ');
    if (words.empty()) continue;
    if (words[0] == "case") {
      StartCase();
      title = Join(words, 1);
      skip = false;
    } else if (!skip) {
      const std::string what = Run(words);
      if (what.empty()) continue;
      wrong.push_back(StrCat(path, ":", number, ": ", title, "\n  ", line, "\n  ", what));
      skip = true;  // what follows in this case means nothing any more
    }
  }
  return wrong;
}

void TraceRunner::StartCase() {
  ++cases_;
  config_ = engine::SmallConfig();
  harness_.reset();
  named_.clear();
  open_.clear();
}

std::string TraceRunner::Run(const Words& words) {
  const std::map<std::string, std::function<std::string()>> verbs = {
      {"config", [&] { return Configure(words); }},
      {"submit", [&] { return Submit(words); }},
      {"refuse", [&] { return Submit(words); }},
      {"plan", [&] { return Plan(words); }},
      {"finish", [&] { return Finish(words); }},
      {"step",
       [&] {
         const std::string wrong = Plan(words);
         return wrong.empty() ? Finish({"finish"}) : wrong;
       }},
      {"drafts", [&] { return SetDrafts(words); }},
      {"pause",
       [&] {
         const std::string& mode = words.at(1);
         harness().engine.SetPause(mode == "new"   ? PauseMode::kNewRequests
                                   : mode == "all" ? PauseMode::kAll
                                                   : PauseMode::kNone);
         return std::string();
       }},
      {"expect", [&] { return Expect(words); }},
      {"abort", [&] { return End(words); }},
      {"stop", [&] { return End(words); }},
      {"fail",
       [&] {
         harness().Fail();
         open_.clear();
         return std::string();
       }},
      {"run",
       [&] {
         for (int n = std::stoi(words.at(1)); n > 0; --n) {
           const StepPlan* plan = harness().Begin();
           if (!plan) return std::string("nothing was planned");
           open_.push_back(*plan);
           const std::string wrong = Finish({"finish"});
           if (!wrong.empty()) return wrong;
         }
         return std::string();
       }},
      {"reset",
       [&] {
         const bool done = harness().engine.ResetPrefixCache();
         return std::string(done == (words.size() == 1) ? "" : done ? "done" : "refused");
       }},
      {"wait",
       [&] {
         harness().clock.now_us += int64_t{1000} * std::stoi(words.at(1));
         return std::string();
       }},
  };
  const auto verb = verbs.find(words[0]);
  return verb == verbs.end() ? "unknown verb" : verb->second();
}

engine::Harness& TraceRunner::harness() {
  if (!harness_) harness_ = std::make_unique<engine::Harness>(config_);
  return *harness_;
}

std::string TraceRunner::Configure(const Words& words) {
  if (harness_) return "config comes before everything else of a case";
  for (size_t i = 1; i < words.size(); ++i) {
    if (!SetField(&config_, Parse(words[i]))) return "unknown field " + words[i];
  }
  const Status s = Validate(config_);
  return s.ok() ? "" : s.message();
}

std::string TraceRunner::Submit(const Words& words) {
  SamplingParams params = engine::Greedy(16);
  Named named;
  int32_t length = 0;
  int32_t priority = 0;
  std::string salt;
  std::string message;
  for (size_t i = 2; i < words.size() && message.empty(); ++i) {
    const KeyValue kv = Parse(words[i]);
    if (kv.key == "len") {
      length = kv.number();
    } else if (kv.key == "like") {
      named.prompt = TokensLike(kv.value);
    } else if (kv.key == "ids") {
      named.prompt = Ids(kv.value);
    } else if (kv.key == "priority") {
      priority = kv.number();
    } else if (kv.key == "salt") {
      salt = kv.value;
    } else if (kv.key == "message") {
      message = Join(words, i).substr(kv.key.size() + 1);
    } else if (!SetParam(&params, kv)) {
      return "unknown field " + words[i];
    }
  }
  const auto own = engine::Prompt(std::max(length, 0), int32_t(named_.size()) + 1);
  while (int32_t(named.prompt.size()) < length) named.prompt.push_back(own[named.prompt.size()]);
  const auto id = harness().engine.AddRequest(named.prompt, params, priority, salt);
  if (words[0] == "refuse") {
    if (id.ok()) return "it was accepted";
    return id.status().message().find(message) == std::string::npos ? id.status().message() : "";
  }
  if (!id.ok()) return id.status().message();
  named.id = *id;
  named_[words.at(1)] = named;
  return "";
}

// a:8 = the first 8 tokens of what a has by now, output included.
std::vector<int32_t> TraceRunner::TokensLike(const std::string& what) {
  const Words from = Split(what, ':');
  const Named& other = named_.at(from.at(0));
  std::vector<int32_t> all = other.prompt;
  const auto& output = harness().done(other.id).tokens;
  all.insert(all.end(), output.begin(), output.end());
  all.resize(std::stoul(from.at(1)));
  return all;
}

std::string TraceRunner::NameOf(uint64_t request) const {
  for (const auto& [name, named] : named_) {
    if (Value(named.id) == request) return name;
  }
  return "?";
}

// a:8+4! = request a, positions 8 to 11, sampled from; a:8+4!4 = four samples.
std::string TraceRunner::Describe(const StepPlan& plan) {
  std::string text;
  for (const engine::Row& row : harness().Rows(&plan)) {
    text +=
        StrCat(text.empty() ? "" : " ", NameOf(Value(row.request)), ":", row.first, "+", row.count,
               row.sampled > 0 ? "!" : "", row.sampled > 1 ? std::to_string(row.sampled) : "");
  }
  return text;
}

std::string TraceRunner::Plan(const Words& words) {
  const StepPlan* plan = harness().Begin();
  if (plan) open_.push_back(*plan);
  const std::string got = plan ? Describe(*plan) : "nothing";
  return got == Join(words, 1) ? "" : "planned: " + got;
}

std::string TraceRunner::Finish(const Words& words) {
  if (open_.empty()) return "no step is open";
  const StepPlan plan = open_.front();
  open_.erase(open_.begin());
  std::map<std::string, std::deque<int32_t>> tokens;
  for (size_t i = 1; i < words.size(); ++i) {
    const std::vector<int32_t> ids = Ids(Parse(words[i]).value);
    tokens[Parse(words[i]).key] = {ids.begin(), ids.end()};
  }
  std::vector<int32_t> sampled;
  for (int32_t s = 0; s < plan.num_samples; ++s) {
    std::deque<int32_t>& own = tokens[NameOf(plan.request[plan.sample_row[s]])];
    sampled.push_back(own.empty() ? kPlainToken : own.front());
    if (!own.empty()) own.pop_front();
  }
  for (const auto& [name, left] : tokens) {
    if (!left.empty()) return name + " has fewer samples in this step";
  }
  harness().FinishWith(sampled);
  return "";
}

std::string TraceRunner::SetDrafts(const Words& words) {
  for (size_t i = 1; i < words.size(); ++i) {
    if (words[i] == "refused") continue;
    const KeyValue kv = Parse(words[i]);
    const Status s = harness().engine.SetDrafts(named_.at(kv.key).id, Ids(kv.value));
    harness().engine.CheckInvariants();
    if (s.ok() == (words.back() == "refused")) return s.ok() ? "it was accepted" : s.message();
  }
  return "";
}

std::string TraceRunner::Expect(const Words& words) {
  const EngineStats s = harness().stats();
  const std::map<std::string, int64_t> numbers = {
      {"running", s.running},
      {"waiting", s.waiting},
      {"free", s.free_blocks},
      {"cached", s.cached_blocks},
      {"preemptions", s.preemptions},
      {"evictions", s.evictions},
      {"hits", s.prefix_hits},
      {"prompt_tokens", s.prompt_tokens},
      {"stopped", s.finished_stop},
      {"by_length", s.finished_length},
      {"aborted", s.finished_abort},
      {"failed", s.finished_error},
      {"draft_rows", s.draft_rows},
      {"drafts", s.draft_tokens},
      {"accepted", s.accepted_tokens},
      {"failed_steps", s.failed_steps},
      {"unfinished", harness().engine.HasUnfinished()},
  };
  for (size_t i = 1; i < words.size(); ++i) {
    const KeyValue kv = Parse(words[i]);
    if (const size_t dot = kv.key.find('.'); dot != std::string::npos) {
      const std::string wrong = ExpectOf(kv.key.substr(0, dot), kv.key.substr(dot + 1), kv.value);
      if (!wrong.empty()) return wrong;
      continue;
    }
    const auto number = numbers.find(kv.key);
    if (number == numbers.end()) return "unknown field " + words[i];
    if (number->second != kv.number()) return StrCat(kv.key, " is ", number->second);
  }
  return "";
}

std::string TraceRunner::ExpectOf(const std::string& name, const std::string& field,
                                  const std::string& want) {
  const engine::Done& done = harness().done(named_.at(name).id);
  std::string got = "unknown field";
  if (field == "tokens") got = Text(done.tokens);
  if (field == "end") got = Name(done.reason);
  if (field == "stop") got = std::to_string(done.stop_token);
  if (field == "cached") got = std::to_string(done.cached_tokens);
  return got == want ? "" : name + "." + field + " is " + got;
}

std::string TraceRunner::End(const Words& words) {
  const RequestId id = named_.at(words.at(1)).id;
  const Status s = words[0] == "abort" ? harness().engine.Abort(id) : harness().engine.Stop(id);
  harness().engine.CheckInvariants();
  const bool refused = words.size() > 2 && words[2] == "refused";
  if (refused) return s.code() == StatusCode::kNotFound ? "" : "it was not refused";
  return s.ok() ? "" : s.message();
}

}  // namespace octavo::sched

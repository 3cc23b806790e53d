// Limits, policies and parameters as Python gives them: EngineConfig, CacheGroup, SamplingParams.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "core_module.h"
#include "octavo/config.h"
#include "octavo/sampling_params.h"

namespace py = pybind11;

namespace octavo::bindings {
namespace {

SchedulingPolicy PolicyOf(const std::string& name) {
  if (name == "fcfs") return SchedulingPolicy::kFcfs;
  if (name == "priority") return SchedulingPolicy::kPriority;
  throw py::value_error("policy='" + name + "' is unknown: give 'fcfs' or 'priority'");
}

VictimPolicy VictimOf(const std::string& name) {
  if (name == "cost") return VictimPolicy::kCost;
  if (name == "last") return VictimPolicy::kLast;
  throw py::value_error("victim='" + name + "' is unknown: give 'cost' or 'last'");
}

KvLoadFailurePolicy FailureOf(const std::string& name) {
  if (name == "fail") return KvLoadFailurePolicy::kFail;
  if (name == "recompute") return KvLoadFailurePolicy::kRecompute;
  throw py::value_error("kv_load_failure_policy='" + name +
                        "' is unknown: give 'fail' or 'recompute'");
}

GroupKind KindOf(const std::string& name) {
  if (name == "full") return GroupKind::kFull;
  if (name == "sliding_window") return GroupKind::kSlidingWindow;
  if (name == "chunked_local") return GroupKind::kChunkedLocal;
  if (name == "state") return GroupKind::kState;
  if (name == "cross") return GroupKind::kCross;
  if (name == "latent") return GroupKind::kLatent;
  throw py::value_error("kind='" + name +
                        "' is unknown: give 'full', 'sliding_window', 'chunked_local', 'state', "
                        "'cross' or 'latent'");
}

void BindGroup(py::module_& m) {
  py::class_<GroupSpec>(
      m, "CacheGroup",
      "Layers that share block tables: what they keep of the past, and how many of "
      "their blocks one block of the pool holds (split).")
      .def(py::init([](const std::string& kind, int block_size, int window, int sink, int split,
                       int encoder_len) {
             return GroupSpec{KindOf(kind), block_size, window, sink, split, encoder_len};
           }),
           py::arg("kind") = "full", py::kw_only(), py::arg("block_size") = 16,
           py::arg("window") = 0, py::arg("sink") = 0, py::arg("split") = 1,
           py::arg("encoder_len") = 0)
      .def_readonly("block_size", &GroupSpec::block_size)
      .def_readonly("window", &GroupSpec::window)
      .def_readonly("sink", &GroupSpec::sink)
      .def_readonly("split", &GroupSpec::split)
      .def_readonly("encoder_len", &GroupSpec::encoder_len);
}

void BindLimits(py::class_<EngineConfig>& config) {
  config.def_readonly("num_blocks", &EngineConfig::num_blocks)
      .def_readonly("block_size", &EngineConfig::block_size)
      .def_readonly("max_model_len", &EngineConfig::max_model_len)
      .def_readonly("max_num_seqs", &EngineConfig::max_num_seqs)
      .def_readonly("max_num_batched_tokens", &EngineConfig::max_num_batched_tokens)
      .def_readonly("max_steps_in_flight", &EngineConfig::max_steps_in_flight)
      .def_readonly("max_draft_tokens", &EngineConfig::max_draft_tokens)
      .def_readonly("vocab_size", &EngineConfig::vocab_size);
}

void BindConfig(py::module_& m) {
  py::class_<EngineConfig> config(
      m, "EngineConfig",
      "Limits and policies of the core; checked when an Engine is made from them.");
  config.def(py::init([](int num_blocks, int max_model_len, int vocab_size, int block_size,
                         int max_num_seqs, int max_num_batched_tokens, bool enable_prefix_caching,
                         bool enable_chunked_prefill, bool enable_kv_events,
                         int long_prefill_token_threshold, const std::string& policy,
                         const std::string& victim, int64_t priority_aging_ms, double watermark,
                         bool full_prompt_gate, int max_overtakes, int max_queued_requests,
                         uint64_t hash_seed, std::vector<GroupSpec> groups, int snapshot_interval,
                         int max_steps_in_flight, int max_draft_tokens, int prompt_lookup_min,
                         int prompt_lookup_max, int encoder_cache_size, int encoder_budget,
                         bool sub_block_hits, int64_t sharing_min_tokens, int sharing_min_rows,
                         const std::string& kv_load_failure_policy) {
               EngineConfig c;
               c.num_blocks = num_blocks;
               c.max_model_len = max_model_len;
               c.vocab_size = vocab_size;
               c.block_size = block_size;
               c.max_num_seqs = max_num_seqs;
               c.max_num_batched_tokens = max_num_batched_tokens;
               c.enable_prefix_caching = enable_prefix_caching;
               c.enable_chunked_prefill = enable_chunked_prefill;
               c.enable_kv_events = enable_kv_events;
               c.long_prefill_token_threshold = long_prefill_token_threshold;
               c.policy = PolicyOf(policy);
               c.victim = VictimOf(victim);
               c.priority_aging_ms = priority_aging_ms;
               c.watermark = watermark;
               c.full_prompt_gate = full_prompt_gate;
               c.max_overtakes = max_overtakes;
               c.max_queued_requests = max_queued_requests;
               c.hash_seed = hash_seed;
               c.groups = std::move(groups);
               c.snapshot_interval = snapshot_interval;
               c.max_steps_in_flight = max_steps_in_flight;
               c.max_draft_tokens = max_draft_tokens;
               c.prompt_lookup_min = prompt_lookup_min;
               c.prompt_lookup_max = prompt_lookup_max;
               c.encoder_cache_size = encoder_cache_size;
               c.encoder_budget = encoder_budget;
               c.sub_block_hits = sub_block_hits;
               c.sharing_min_tokens = sharing_min_tokens;
               c.sharing_min_rows = sharing_min_rows;
               c.kv_load_failure_policy = FailureOf(kv_load_failure_policy);
               return c;
             }),
             py::kw_only(), py::arg("num_blocks"), py::arg("max_model_len"), py::arg("vocab_size"),
             py::arg("block_size") = 16, py::arg("max_num_seqs") = 256,
             py::arg("max_num_batched_tokens") = 2048, py::arg("enable_prefix_caching") = true,
             py::arg("enable_chunked_prefill") = true, py::arg("enable_kv_events") = false,
             py::arg("long_prefill_token_threshold") = 0, py::arg("policy") = "fcfs",
             py::arg("victim") = "cost", py::arg("priority_aging_ms") = 10'000,
             py::arg("watermark") = 0.0, py::arg("full_prompt_gate") = true,
             py::arg("max_overtakes") = 8, py::arg("max_queued_requests") = 1 << 20,
             py::arg("hash_seed") = 0, py::arg("groups") = std::vector<GroupSpec>(),
             py::arg("snapshot_interval") = 0, py::arg("max_steps_in_flight") = 2,
             py::arg("max_draft_tokens") = 0, py::arg("prompt_lookup_min") = 0,
             py::arg("prompt_lookup_max") = 0, py::arg("encoder_cache_size") = 0,
             py::arg("encoder_budget") = 0, py::arg("sub_block_hits") = false,
             py::arg("sharing_min_tokens") = 0, py::arg("sharing_min_rows") = 1,
             py::arg("kv_load_failure_policy") = "fail");
  BindLimits(config);
}

void BindSamplingParams(py::module_& m) {
  py::class_<SamplingParams>(
      m, "SamplingParams",
      "How one request samples and stops, by token ids; octavo.SamplingParams is "
      "the public form with text.")
      .def(py::init<>())
      .def_readwrite("max_tokens", &SamplingParams::max_tokens)
      .def_readwrite("min_tokens", &SamplingParams::min_tokens)
      .def_readwrite("temperature", &SamplingParams::temperature)
      .def_readwrite("top_k", &SamplingParams::top_k)
      .def_readwrite("top_p", &SamplingParams::top_p)
      .def_readwrite("min_p", &SamplingParams::min_p)
      .def_readwrite("presence_penalty", &SamplingParams::presence_penalty)
      .def_readwrite("frequency_penalty", &SamplingParams::frequency_penalty)
      .def_readwrite("repetition_penalty", &SamplingParams::repetition_penalty)
      .def_readwrite("seed", &SamplingParams::seed)
      .def_readwrite("ignore_eos", &SamplingParams::ignore_eos)
      .def_readwrite("eos_token_ids", &SamplingParams::eos_token_ids)
      .def_readwrite("stop_token_ids", &SamplingParams::stop_token_ids)
      .def_readwrite("logit_bias", &SamplingParams::logit_bias)
      .def_readwrite("bad_words", &SamplingParams::bad_words)
      .def_readwrite("begin_suppress_tokens", &SamplingParams::begin_suppress_tokens)
      .def_readwrite("allowed_token_ids", &SamplingParams::allowed_token_ids)
      .def_readwrite("num_logprobs", &SamplingParams::num_logprobs)
      .def_readwrite("num_prompt_logprobs", &SamplingParams::num_prompt_logprobs);
}

}  // namespace

void BindOptions(py::module_& m) {
  BindGroup(m);
  BindConfig(m);
  BindSamplingParams(m);
}

}  // namespace octavo::bindings

// octavo._core: the engine as Python sees it. Translation only: arguments in, Status to exceptions,
// columns out as arrays over the core's own memory. The GIL is released around every call that may
// take long.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "base/clock.h"
#include "core_module.h"
#include "engine/core_engine.h"

namespace py = pybind11;

namespace octavo::bindings {

void Throw(const Status& status) {
  const char* message = status.message().c_str();
  switch (status.code()) {
    case StatusCode::kInvalidArgument:
      throw py::value_error(message);
    case StatusCode::kNotFound:
      throw py::key_error(message);
    case StatusCode::kResourceExhausted:
      PyErr_SetString(PyExc_MemoryError, message);
      throw py::error_already_set();
    default:
      throw std::runtime_error(message);
  }
}

py::array ArrayOf(std::span<const StepOutput> outputs) {
  py::array_t<StepOutput> array(static_cast<py::ssize_t>(outputs.size()));
  std::memcpy(array.mutable_data(), outputs.data(), outputs.size_bytes());
  return array;
}

namespace {

using engine::CoreEngine;
using Tokens = py::array_t<int32_t, py::array::c_style>;

std::span<const int32_t> SpanOf(const Tokens& tokens) {
  if (tokens.ndim() != 1) throw py::value_error("token ids must be a one-dimensional int32 array");
  return {tokens.data(), static_cast<size_t>(tokens.size())};
}

py::dtype NumpyType(DType type) {
  switch (type) {
    case DType::kF32:
      return py::dtype::of<float>();
    case DType::kI32:
      return py::dtype::of<int32_t>();
    case DType::kI64:
      return py::dtype::of<int64_t>();
    case DType::kU64:
      return py::dtype::of<uint64_t>();
    default:
      throw std::runtime_error("no column has this type");
  }
}

py::array Outputs(const Result<std::span<const StepOutput>>& result) {
  if (!result.ok()) Throw(result.status());
  return ArrayOf(*result);
}

using ColumnDict = py::typing::Dict<py::str, py::array>;
using IntDict = py::typing::Dict<py::str, py::int_>;
using EventList = py::typing::List<py::typing::Dict<py::str, py::object>>;

ColumnDict Columns(py::object self, int slot) {
  const auto& engine = self.cast<const CoreEngine&>();
  if (slot < 0 || slot >= engine.arena().num_slots()) {
    throw py::value_error("slot=" + std::to_string(slot) + " is out of range: give 0 to " +
                          std::to_string(engine.arena().num_slots() - 1));
  }
  ColumnDict columns;
  for (const batch::ColumnSpec& spec : batch::kColumns) {
    const auto count = static_cast<py::ssize_t>(engine.arena().capacity(spec.column));
    columns[spec.name] = py::array(NumpyType(spec.dtype), {count},
                                   engine.arena().At<std::byte>(slot, spec.column), self);
  }
  return columns;
}

py::array BlockTable(py::object self, size_t group) {
  const auto& engine = self.cast<const CoreEngine&>();
  if (group >= engine.block_tables().size()) {
    throw py::value_error("group=" + std::to_string(group) + " does not exist");
  }
  const BlockTableView& view = engine.block_tables()[group];
  return py::array(py::dtype::of<int32_t>(),
                   {static_cast<py::ssize_t>(engine.config().max_num_seqs), view.row_stride},
                   view.data, self);
}

IntDict StatsOf(const EngineStats& s) {
  IntDict d;
  d["steps"] = s.steps;
  d["failed_steps"] = s.failed_steps;
  d["scheduled_tokens"] = s.scheduled_tokens;
  d["prompt_tokens"] = s.prompt_tokens;
  d["generation_tokens"] = s.generation_tokens;
  d["draft_rows"] = s.draft_rows;
  d["draft_tokens"] = s.draft_tokens;
  d["accepted_tokens"] = s.accepted_tokens;
  d["prefix_queries"] = s.prefix_queries;
  d["prefix_hits"] = s.prefix_hits;
  d["copied_tokens"] = s.copied_tokens;
  d["preemptions"] = s.preemptions;
  d["evictions"] = s.evictions;
  d["finished_stop"] = s.finished_stop;
  d["finished_length"] = s.finished_length;
  d["finished_abort"] = s.finished_abort;
  d["finished_error"] = s.finished_error;
  d["dropped_events"] = s.dropped_events;
  d["kv_loads"] = s.kv_loads;
  d["kv_loaded_tokens"] = s.kv_loaded_tokens;
  d["running"] = s.running;
  d["waiting"] = s.waiting;
  d["total_blocks"] = s.total_blocks;
  d["free_blocks"] = s.free_blocks;
  d["cached_blocks"] = s.cached_blocks;
  d["encoder_queries"] = s.encoder_queries;
  d["encoder_hits"] = s.encoder_hits;
  d["encoder_entries"] = s.encoder_entries;
  d["encoder_embeddings"] = s.encoder_embeddings;
  d["kv_slots_allocated"] = s.kv_slots_allocated;
  d["kv_slots_filled"] = s.kv_slots_filled;
  return d;
}

py::bytes BytesOf(const uint64_t (&hash)[2]) {
  return py::bytes(reinterpret_cast<const char*>(hash), sizeof(hash));
}

// (salt, [(hash, start, length)]), or None where the tokens say all.
py::object ExtraOf(const KvExtraKeys* extra) {
  if (!extra) return py::none();
  py::list items;
  for (const KvItemKey& item : extra->items) {
    items.append(py::make_tuple(BytesOf(item.hash), item.start, item.length));
  }
  // Text in Python, whatever bytes a salt is made of.
  py::object salt = py::reinterpret_steal<py::object>(PyUnicode_DecodeUTF8(
      extra->salt.data(), static_cast<Py_ssize_t>(extra->salt.size()), "backslashreplace"));
  if (!salt) throw py::error_already_set();
  return py::make_tuple(std::move(salt), std::move(items));
}

EventList ListOf(std::vector<KvEvent> events) {
  EventList list;
  for (KvEvent& e : events) {
    py::dict d;
    d["kind"] = e.kind == KvEventKind::kStored    ? "stored"
                : e.kind == KvEventKind::kRemoved ? "removed"
                                                  : "cleared";
    d["group"] = e.group;
    d["block"] = Index(e.block);
    d["hash"] = BytesOf(e.hash);
    d["parent"] = BytesOf(e.parent);
    d["start"] = e.start;
    d["token_ids"] = std::move(e.tokens);
    d["extra"] = ExtraOf(e.extra.get());
    list.append(std::move(d));
  }
  return list;
}

EventList EventsOf(CoreEngine& engine) {
  std::vector<KvEvent> events;
  engine.TakeEvents(&events);
  return ListOf(std::move(events));
}

EventList ContentOf(const CoreEngine& engine) {
  std::vector<KvEvent> events;
  if (Status s = engine.CachedContent(&events); !s.ok()) Throw(s);
  return ListOf(std::move(events));
}

constexpr const char* kPauses[] = {"none", "new_requests", "all"};

PauseMode PauseOf(const std::string& name) {
  for (size_t i = 0; i < std::size(kPauses); ++i) {
    if (name == kPauses[i]) return PauseMode{static_cast<uint8_t>(i)};
  }
  throw py::value_error("mode='" + name + "' is unknown: give 'none', 'new_requests' or 'all'");
}

std::vector<std::tuple<uint64_t, int, int>> TuplesOf(std::span<const EncoderInput> inputs) {
  std::vector<std::tuple<uint64_t, int, int>> tuples;
  for (const EncoderInput& i : inputs) tuples.emplace_back(i.request, i.item, i.entry);
  return tuples;
}

std::vector<std::tuple<int, int, int, int, int, int>> TuplesOf(std::span<const EncoderSpan> spans) {
  std::vector<std::tuple<int, int, int, int, int, int>> tuples;
  for (const EncoderSpan& s : spans) {
    tuples.emplace_back(s.token, s.count, s.offset, s.entry, s.item, s.row);
  }
  return tuples;
}

void BindPlan(py::module_& m) {
  py::class_<StepPlan>(m, "StepPlan",
                       "Sizes of one step; its contents lie in Engine.columns(plan.slot).")
      .def_readonly("step_id", &StepPlan::step_id)
      .def_readonly("slot", &StepPlan::slot)
      .def_readonly("num_tokens", &StepPlan::num_tokens)
      .def_readonly("num_rows", &StepPlan::num_rows)
      .def_readonly("num_samples", &StepPlan::num_samples)
      .def_readonly("num_scores", &StepPlan::num_scores)
      .def_readonly("num_copies", &StepPlan::num_copies)
      .def_readonly("num_admitted", &StepPlan::num_admitted)
      .def_readonly("num_shared_tokens", &StepPlan::num_shared_tokens,
                    "Tokens of context that running requests share, each counted for every one of "
                    "them: what could be read once.")
      .def_readonly("shares", &StepPlan::shares,
                    "What the rows that decode share is enough to be read once, and those at the "
                    "front that share stand together.")
      .def_readonly("max_query_len", &StepPlan::max_query_len)
      .def_readonly("max_seq_len", &StepPlan::max_seq_len)
      .def_readonly("max_logprobs", &StepPlan::max_logprobs)
      .def_readonly("all_greedy", &StepPlan::all_greedy)
      .def_property_readonly(
          "encoder_evicted",
          [](const StepPlan& p) {
            return std::vector<int32_t>(p.encoder_evicted.begin(), p.encoder_evicted.end());
          },
          "Entries whose embeddings are no longer kept; drop them first.")
      .def_property_readonly(
          "encoder_inputs", [](const StepPlan& p) { return TuplesOf(p.encoder_inputs); },
          "(request, item, entry): encode the item before the forward pass, keep it as the entry. "
          "Entry -1: a cross item, write its keys and values into the blocks of its row.")
      .def_property_readonly(
          "encoder_rows",
          [](const StepPlan& p) {
            std::vector<int> rows;
            for (const EncoderInput& i : p.encoder_inputs) rows.push_back(i.row);
            return rows;
          },
          "Of each of encoder_inputs, the row of the step that takes it first.")
      .def_property_readonly(
          "encoder_spans", [](const StepPlan& p) { return TuplesOf(p.encoder_spans); },
          "(token, count, offset, entry, item, row): tokens of the step that take embeddings, from "
          "the offset-th token of the item's span on.");
}

EncoderItem MakeEncoderItem(const py::bytes& hash, int start, int length, int embeddings,
                            bool bidirectional, bool cross) {
  const std::string_view digest = hash;
  EncoderItem item;
  if (digest.size() != sizeof(item.hash)) {
    throw py::value_error("hash has " + std::to_string(digest.size()) +
                          " bytes: give 16, of the content and all that decides its embeddings");
  }
  std::memcpy(item.hash, digest.data(), digest.size());
  item.start = start;
  item.length = length;
  item.embeddings = embeddings;
  item.bidirectional = bidirectional;
  item.cross = cross;
  return item;
}

void BindEncoderItem(py::module_& m) {
  py::class_<EncoderItem>(
      m, "EncoderItem",
      "An image or audio clip of a prompt: a span of placeholder tokens. cross: "
      "no span (start and length 0), every token sees it through the cross "
      "groups.")
      .def(py::init(&MakeEncoderItem), py::arg("hash"), py::arg("start"), py::arg("length"),
           py::arg("embeddings"), py::arg("bidirectional") = false, py::arg("cross") = false);
}

// Tells the time that it was told last.
struct ManualClock final : Clock {
  int64_t NowMicros() override { return now_us; }
  int64_t now_us = 0;
};

void BindClock(py::module_& m) {
  py::class_<ManualClock>(m, "ManualClock",
                          "A clock that stands still until now_us is set; it must not go back.")
      .def(py::init<>())
      .def_readwrite("now_us", &ManualClock::now_us);
}

std::unique_ptr<CoreEngine> MakeEngine(const EngineConfig& config,
                                       std::optional<ManualClock*> clock) {
  Clock& time = clock ? static_cast<Clock&>(**clock) : SteadyClock();
  auto engine = CoreEngine::Create(config, time, SystemMemory());
  if (!engine.ok()) Throw(engine.status());
  return std::move(*engine);
}

// A Retention that owns its ranges.
struct OwnedRetention {
  std::vector<RetentionRange> ranges;
  int32_t decode_priority;
  int64_t decode_duration_ms;
};
using RangeTuple = std::tuple<int32_t, int32_t, int32_t, int64_t>;

void BindRetention(py::module_& m) {
  py::class_<OwnedRetention>(
      m, "Retention",
      "How long a request's KV is worth keeping: (begin, end, priority, duration_ms) for ranges of "
      "the prompt, and the same for what it generates.")
      .def(py::init([](const std::vector<RangeTuple>& ranges, int decode_priority,
                       int64_t decode_duration_ms) {
             OwnedRetention owned{{}, decode_priority, decode_duration_ms};
             for (const auto& [begin, end, priority, duration_ms] : ranges) {
               owned.ranges.push_back({begin, end, priority, duration_ms});
             }
             return owned;
           }),
           py::arg("ranges"), py::kw_only(), py::arg("decode_priority") = kOrdinaryPriority,
           py::arg("decode_duration_ms") = 0);
}

uint64_t AddRequest(CoreEngine& engine, const Tokens& prompt, const SamplingParams& params,
                    int priority, const std::string& cache_salt,
                    const std::optional<OwnedRetention>& retention,
                    const std::vector<EncoderItem>& encoder_items) {
  RequestInput input{SpanOf(prompt), params, priority, cache_salt};
  input.encoder_items = encoder_items;
  if (retention) {
    input.retention = {retention->ranges, retention->decode_priority,
                       retention->decode_duration_ms};
  }
  const Turn turn(engine);
  auto id = engine.AddRequest(input);
  if (!id.ok()) Throw(id.status());
  return Value(*id);
}

const StepPlan* BeginStep(CoreEngine& engine) {
  const Turn turn(engine);
  py::gil_scoped_release release;
  return engine.BeginStep();
}

py::array FinishStep(CoreEngine& engine, uint64_t step_id, const Tokens& tokens) {
  const std::span<const int32_t> span = SpanOf(tokens);
  const Turn turn(engine);
  Result<std::span<const StepOutput>> result = [&] {
    py::gil_scoped_release release;
    return engine.FinishStep(step_id, span);
  }();
  return Outputs(result);
}

void Check(const Status& status) {
  if (!status.ok()) Throw(status);
}

void BindContent(py::class_<CoreEngine>& engine) {
  engine
      .def("reset_prefix_cache", InTurn(+[](CoreEngine& e) { return e.ResetPrefixCache(); }),
           "Forgets all cached prefixes; False, and no change, while a request holds blocks.")
      .def("reset_encoder_cache", InTurn(+[](CoreEngine& e) { e.ResetEncoderCache(); }),
           "Forgets the embeddings of images and audio that no request uses.")
      .def("take_events", InTurn(&EventsOf),
           "KV events since the last call (needs enable_kv_events): kind, group, block, hash, "
           "parent (of the content before), start (of its first token), token_ids, and extra: the "
           "salt of a first block and the (hash, start in the block, length) of items in it, or "
           "None.")
      .def_property_readonly("dropped_events",
                             InTurn(+[](const CoreEngine& e) { return e.kv().events().dropped(); }),
                             "Events that take_events came too late for.")
      .def("cached_content", InTurn(&ContentOf),
           "The whole prefix cache as stored events, prefixes first: one for each content.");
}

void BindEngine(py::module_& m) {
  PYBIND11_NUMPY_DTYPE(StepOutput, request, token, sample, stop_token, cached_tokens, finish);
  py::class_<CoreEngine> engine(m, "Engine",
                                "Scheduler, KV manager and step batch. One thread at a time may "
                                "call it, beside its StepLoop.");
  BindContent(engine);
  BindHostTier(engine);
  engine
      .def(py::init(&MakeEngine), py::arg("config"), py::arg("clock") = std::nullopt,
           py::keep_alive<1, 3>())
      .def("add_request", &AddRequest, py::arg("prompt_token_ids"), py::arg("params"),
           py::arg("priority") = 0, py::arg("cache_salt") = "", py::arg("retention") = std::nullopt,
           py::arg("encoder_items") = std::vector<EncoderItem>(),
           "Queues a request and returns its id. ValueError names what can never run.")
      .def("set_drafts", InTurn(+[](CoreEngine& e, uint64_t id, const Tokens& drafts) {
             Check(e.SetDrafts(RequestId{id}, SpanOf(drafts)));
           }),
           py::arg("request"), py::arg("token_ids"),
           "Proposes what follows the tokens known of a request, for its next row; outputs do not "
           "depend on it. RuntimeError while its drafts are in an open step.")
      .def("begin_step", &BeginStep, py::return_value_policy::reference_internal,
           "Plans the next step; None when nothing can be scheduled now.")
      .def("finish_step", &FinishStep, py::arg("step_id"), py::arg("token_ids"),
           "Takes one token a sample (-1: that row failed) of the oldest open step; returns the "
           "outputs.")
      .def("fail_step",
           InTurn(+[](CoreEngine& e, uint64_t step_id) { return Outputs(e.FailStep(step_id)); }),
           py::arg("step_id"), "Ends every request of this step and of all later open ones.")
      .def("abort", InTurn(+[](CoreEngine& e, uint64_t id) { Check(e.Abort(RequestId{id})); }),
           py::arg("request"), "Ends a request now. KeyError when it has ended already.")
      .def("stop", InTurn(+[](CoreEngine& e, uint64_t id) { Check(e.Stop(RequestId{id})); }),
           py::arg("request"), "Ends a request as finished (the front end saw a stop string).")
      .def("columns", &Columns, py::arg("slot"),
           "The columns of a host slot at full capacity, by name, over the core's own memory.")
      .def("block_table", &BlockTable, py::arg("group") = 0,
           "[max_num_seqs, max_blocks] int32 over the core's own memory; unused entries are block "
           "0.")
      .def("set_pause",
           InTurn(+[](CoreEngine& e, const std::string& mode) { e.SetPause(PauseOf(mode)); }),
           py::arg("mode"),
           "'new_requests' admits nobody who has not run yet, 'all' plans no step, 'none' goes on. "
           "Nothing ends by it.")
      .def_property_readonly("pause", InTurn(+[](const CoreEngine& e) {
                               return std::string(kPauses[static_cast<int>(e.pause())]);
                             }))
      .def("has_unfinished", InTurn(+[](const CoreEngine& e) { return e.HasUnfinished(); }),
           "Whether any request has not ended, paused or not.")
      .def("stats", InTurn(+[](const CoreEngine& e) { return StatsOf(e.Stats()); }))
      .def_property_readonly("num_running",
                             InTurn(+[](const CoreEngine& e) { return e.num_running(); }))
      .def_property_readonly("num_waiting",
                             InTurn(+[](const CoreEngine& e) { return e.num_waiting(); }))
      .def("check_invariants", InTurn(+[](const CoreEngine& e) { e.CheckInvariants(); }),
           "Aborts the process when the core's books do not balance. O(pool); for tests.")
      .def_property_readonly("config", &CoreEngine::config);
}

}  // namespace
}  // namespace octavo::bindings

PYBIND11_MODULE(_core, m) {
  m.doc() = "Octavo's control plane: scheduler, KV memory, step batch.";
  octavo::bindings::BindOptions(m);
  octavo::bindings::BindPlan(m);
  octavo::bindings::BindRetention(m);
  octavo::bindings::BindEncoderItem(m);
  octavo::bindings::BindClock(m);
  octavo::bindings::BindEngine(m);
  octavo::bindings::BindKv(m);
  octavo::bindings::BindLoop(m);
  octavo::bindings::BindSim(m);
}

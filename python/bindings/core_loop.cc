// The step loop as Python sees it: sizes and layouts of device steps, the graphs that are launched
// without Python, and the loop that launches them.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "batch/packing.h"
#include "batch/step_shape.h"
#include "core_module.h"
#include "engine/graph_steps.h"
#include "engine/step_loop.h"

namespace py = pybind11;

namespace octavo::bindings {
namespace {

using batch::PackedLayout;
using batch::StepShape;
using batch::StepSizes;
using engine::CoreEngine;
using engine::GraphSteps;
using engine::LoopNews;
using engine::LoopTurn;
using engine::StagingMemory;
using engine::StepLoop;

// Between two looks for signals: as long as Ctrl-C may wait.
constexpr std::chrono::milliseconds kPatience{20};

// tokens, rows, samples, queries, greedy.
using ShapeTuple = std::tuple<int32_t, int32_t, int32_t, int32_t, bool>;
using Addresses = std::vector<uintptr_t>;

template <typename T>
T* PointerTo(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

template <typename T>
std::vector<T*> PointersTo(const Addresses& addresses) {
  std::vector<T*> pointers;
  for (const uintptr_t address : addresses) pointers.push_back(PointerTo<T>(address));
  return pointers;
}

void BindSizes(py::module_& m) {
  py::class_<StepSizes>(m, "StepSizes", "Sizes that device steps are padded to; lists rise.")
      .def(py::init([](std::vector<int32_t> decode, std::vector<int32_t> mixed_rows,
                       std::vector<int32_t> mixed_tokens, int32_t eager_grain, int32_t max_tokens,
                       int32_t max_rows, int32_t drafted) {
             if (decode.empty() || mixed_rows.empty() || mixed_tokens.empty()) {
               throw py::value_error("a list of sizes is empty: give at least the largest step's");
             }
             return StepSizes{std::move(decode),
                              std::move(mixed_rows),
                              std::move(mixed_tokens),
                              eager_grain,
                              max_tokens,
                              max_rows,
                              drafted};
           }),
           py::kw_only(), py::arg("decode"), py::arg("mixed_rows"), py::arg("mixed_tokens"),
           py::arg("eager_grain"), py::arg("max_tokens"), py::arg("max_rows"), py::arg("drafted"))
      .def(
          "of",
          [](const StepSizes& sizes, int32_t tokens, int32_t rows, int32_t samples, int32_t longest,
             bool greedy, int32_t admitted, bool shares) {
            const StepShape s =
                sizes.Of({tokens, rows, samples, longest, greedy, admitted, shares});
            return ShapeTuple{s.tokens, s.rows, s.samples, s.queries, s.greedy};
          },
          py::kw_only(), py::arg("tokens"), py::arg("rows"), py::arg("samples"), py::arg("longest"),
          py::arg("greedy"), py::arg("admitted") = 0, py::arg("shares") = false,
          "(tokens, rows, samples, queries, greedy) of the smallest shape that holds a step; "
          "`longest`: tokens of its longest row; `admitted`: rows that it admitted; `shares`: as "
          "StepPlan says it.");
}

PackedLayout MakeLayout(const ShapeTuple& shape, const std::map<std::string, int64_t>& offsets,
                        int64_t bytes) {
  PackedLayout layout;
  std::tie(layout.shape.tokens, layout.shape.rows, layout.shape.samples, layout.shape.queries,
           layout.shape.greedy) = shape;
  layout.bytes = bytes;
  layout.landing = offsets.at("landing");
  for (const batch::ColumnSpec& spec : batch::kColumns) {
    const auto found = offsets.find(spec.name);
    if (found != offsets.end() && batch::IsPacked(spec.column)) {
      layout.at(spec.column) = found->second;
    }
  }
  return layout;
}

void BindPacking(py::module_& m) {
  py::class_<PackedLayout>(
      m, "PackedLayout", "Where the columns of a shape lie in the piece that is sent to a device.")
      .def(py::init(&MakeLayout), py::kw_only(), py::arg("shape"), py::arg("offsets"),
           py::arg("bytes"));
  m.def(
      "pack_step",
      [](const CoreEngine& engine, const StepPlan& plan, const PackedLayout& layout,
         int32_t spare_slot, int64_t landing, uintptr_t piece) {
        batch::Pack(engine.arena(), plan, layout, spare_slot, landing, PointerTo<std::byte>(piece));
        return batch::ReadsByAddress(engine.arena(), plan);
      },
      py::arg("engine"), py::arg("plan"), py::arg("layout"), py::kw_only(), py::arg("spare_slot"),
      py::arg("landing"), py::arg("piece"),
      "Writes a step's columns, padded, to the address `piece`; its tokens are to go to `landing`. "
      "True: a sample has a penalty or a mask, whose addresses are left 0.");
}

std::unique_ptr<GraphSteps> MakeSteps(const CoreEngine& engine, uintptr_t queue,
                                      const StepSizes& sizes, int32_t spare_slot,
                                      const Addresses& host, const Addresses& host_token,
                                      const Addresses& host_value, const Addresses& landing,
                                      const std::tuple<uintptr_t, uintptr_t, uintptr_t>& device) {
  const auto slots = static_cast<size_t>(engine.arena().num_slots());
  for (const Addresses* list : {&host, &host_token, &host_value, &landing}) {
    if (list->size() != slots) throw py::value_error("give an address for each host slot");
  }
  StagingMemory memory;
  memory.host = PointersTo<std::byte>(host);
  memory.host_token = PointersTo<int32_t>(host_token);
  memory.host_value = PointersTo<float>(host_value);
  memory.landing = PointersTo<const int32_t>(landing);
  memory.columns = PointerTo<std::byte>(std::get<0>(device));
  memory.edit_token = PointerTo<int32_t>(std::get<1>(device));
  memory.edit_value = PointerTo<float>(std::get<2>(device));
  return std::make_unique<GraphSteps>(engine.arena(), *PointerTo<const DeviceQueue>(queue), sizes,
                                      std::move(memory), spare_slot);
}

void BindSteps(py::module_& m) {
  py::class_<GraphSteps>(m, "GraphSteps",
                         "Steps whose captured graphs are known, launched without Python. All "
                         "addresses must stay valid as long as it lives.")
      .def(py::init(&MakeSteps), py::arg("engine"), py::kw_only(), py::arg("queue"),
           py::arg("sizes"), py::arg("spare_slot"), py::arg("host"), py::arg("host_token"),
           py::arg("host_value"), py::arg("landing"), py::arg("device"), py::keep_alive<1, 2>(),
           "queue: the address of a DeviceQueue (octavo/executor.h); host, host_token, host_value, "
           "landing: pinned memory for packed columns, for the tokens and values of logit edits, "
           "and for a step's tokens, an address for each host slot; device: where columns, tokens "
           "and values of edits go.")
      .def(
          "add",
          [](GraphSteps& steps, const PackedLayout& layout, uintptr_t graph) {
            steps.Add(layout, PointerTo<void>(graph));
          },
          py::arg("layout"), py::arg("graph"),
          "Steps of this shape are launches of a graph (a cudaGraphExec_t). While the loop waits "
          "for its caller, or before it was asked for anything.");
}

// What `StepLoop.next` returns.
struct News {
  const StepPlan* plan = nullptr;
  uint64_t step_id = 0;
  int32_t num_rows = 0;
  py::object outputs = py::none();
  std::optional<std::string> failure;
};

News NewsOf(const LoopNews& news) {
  News made;
  made.plan = news.plan;
  if (const engine::StepReport* report = news.report) {
    made.step_id = report->step_id;
    made.num_rows = report->num_rows;
    made.outputs = ArrayOf(report->outputs);
    if (!report->failure.ok()) made.failure = report->failure.message();
  }
  return made;
}

std::optional<News> Next(StepLoop& loop) {
  // At best without giving the GIL away: another thread might keep it for milliseconds.
  LoopNews news = loop.TryNext();
  while (news.turn == LoopTurn::kNotYet) {
    {
      py::gil_scoped_release release;
      news = loop.Next(kPatience);
    }
    if (news.turn == LoopTurn::kNotYet && PyErr_CheckSignals() != 0) {
      throw py::error_already_set();
    }
  }
  if (news.turn == LoopTurn::kNothing) return std::nullopt;
  return NewsOf(news);
}

std::unique_ptr<StepLoop> MakeLoop(CoreEngine& engine, GraphSteps& steps, int depth) {
  const int most = engine.config().max_steps_in_flight;
  if (depth < 1 || depth > most) {
    throw py::value_error("depth=" + std::to_string(depth) + " is out of range: give 1 to " +
                          std::to_string(most) + ", the engine's max_steps_in_flight");
  }
  return std::make_unique<StepLoop>(engine, steps, depth);
}

void Launched(StepLoop& loop, const std::optional<std::string>& error) {
  py::gil_scoped_release release;
  loop.Launched(error ? Status(StatusCode::kUnavailable, *error) : Status::Ok());
}

void BindStepLoop(py::module_& m) {
  py::class_<News>(m, "StepNews", "A step to launch, or one that is over.")
      .def_property_readonly(
          "plan",
          [](const News& news) {
            return news.plan ? std::optional<const StepPlan*>(news.plan) : std::nullopt;
          },
          py::return_value_policy::reference,
          "The step to launch; None: this tells of one that is over.")
      .def_readonly("step_id", &News::step_id)
      .def_readonly("num_rows", &News::num_rows)
      .def_readonly("outputs", &News::outputs, "As Engine.finish_step returns them.")
      .def_readonly("failure", &News::failure,
                    "Why the step failed, and with it all that were open; None: it did not.");
  py::class_<StepLoop>(m, "StepLoop",
                       "Steps an engine on a thread of its own, which never takes the GIL: up to "
                       "`depth` steps are open. One thread at a time may call it.")
      .def(py::init(&MakeLoop), py::arg("engine"), py::arg("steps"), py::arg("depth"),
           py::keep_alive<1, 2>(), py::keep_alive<1, 3>())
      .def("next", &Next,
           "Lets the engine step, and waits for the next thing to do; None: there is nothing to "
           "run. A step that was handed out and not reported as launched fails.")
      .def("launched", &Launched, py::arg("error") = std::nullopt,
           "The step that `next` handed out runs on the queue, or could not be started.")
      .def(
          "stop",
          [](StepLoop& loop) {
            py::gil_scoped_release release;
            loop.Stop();
          },
          "Waits for what runs and ends the thread; `next` then returns what was reported before, "
          "and None. It can be called twice.");
}

}  // namespace

void BindLoop(py::module_& m) {
  BindSizes(m);
  BindPacking(m);
  BindSteps(m);
  BindStepLoop(m);
}

}  // namespace octavo::bindings

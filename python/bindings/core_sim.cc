// octavo._core: serving in virtual time. Requests in as a structured array, records out as one.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <memory>
#include <utility>
#include <vector>

#include "core_module.h"
#include "sim/serve/serve.h"

namespace py = pybind11;

namespace octavo::bindings {
namespace {

using sim::AttentionCost;
using sim::CostModel;
using sim::CostTable;
using sim::Roofline;
using sim::ServeRecord;
using sim::ServeRequest;
using sim::ServeSample;

std::unique_ptr<CostModel> MakeRoofline(
    double weight_bytes, double flops_of_a_token, double flops_of_a_sample,
    const std::vector<std::tuple<int, double, double>>& attention, double bytes_per_second,
    double flops_per_second, double step_seconds, double row_seconds) {
  Roofline r;
  r.weight_bytes = weight_bytes;
  r.flops_of_a_token = flops_of_a_token;
  r.flops_of_a_sample = flops_of_a_sample;
  for (const auto& [window, key_bytes, flops] : attention) {
    r.attention.push_back(AttentionCost{window, key_bytes, flops});
  }
  r.bytes_per_second = bytes_per_second;
  r.flops_per_second = flops_per_second;
  r.step_seconds = step_seconds;
  r.row_seconds = row_seconds;
  if (Status s = Validate(r); !s.ok()) Throw(s);
  return sim::MakeRoofline(r);
}

std::unique_ptr<CostModel> MakeTable(std::vector<int32_t> rows, std::vector<int32_t> extra,
                                     std::vector<int32_t> context, std::vector<double> seconds) {
  const CostTable table{std::move(rows), std::move(extra), std::move(context), std::move(seconds)};
  if (Status s = Validate(table); !s.ok()) Throw(s);
  return sim::MakeTable(table);
}

template <typename T>
py::array_t<T> Copy(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::typing::Dict<py::str, py::object> Serve(const EngineConfig& config, const CostModel& cost,
                                            const py::array& requests, int lag,
                                            double sample_interval, double submit_seconds,
                                            double max_seconds) {
  using Requests = py::array_t<ServeRequest, py::array::c_style>;
  if (!py::isinstance<Requests>(requests)) {
    throw py::type_error("requests must be a contiguous array of dtype octavo.core.SERVE_REQUEST");
  }
  const auto typed = py::reinterpret_borrow<Requests>(requests);
  auto result = [&] {
    const std::span<const ServeRequest> span(typed.data(), size_t(typed.size()));
    py::gil_scoped_release release;
    return sim::Serve(config, cost, span, {lag, sample_interval, submit_seconds, max_seconds});
  }();
  if (!result.ok()) Throw(result.status());
  const auto& gaps = result->gaps.counts();
  const EngineStats& s = result->stats;
  py::typing::Dict<py::str, py::object> out;
  out["records"] = Copy(result->records);
  out["samples"] = Copy(result->samples);
  out["gap_counts"] = Copy(std::vector<uint64_t>(gaps.begin(), gaps.end()));
  out["seconds"] = result->seconds;
  out["busy_seconds"] = result->busy_seconds;
  out["bandwidth_use"] = result->bandwidth_use;
  out["compute_use"] = result->compute_use;
  out["kv_use"] = result->mean_kv_use;
  out["steps"] = s.steps;
  out["scheduled_tokens"] = s.scheduled_tokens;
  out["preemptions"] = s.preemptions;
  out["evictions"] = s.evictions;
  out["prefix_queries"] = s.prefix_queries;
  out["prefix_hits"] = s.prefix_hits;
  return out;
}

}  // namespace

void BindSim(py::module_& m) {
  PYBIND11_NUMPY_DTYPE(ServeRequest, arrival, after, grows, prefix, prefix_len, like, input_len,
                       output_len);
  PYBIND11_NUMPY_DTYPE(ServeRecord, arrival, first_token, end, prompt_tokens, cached_tokens,
                       output_tokens, refused);
  PYBIND11_NUMPY_DTYPE(ServeSample, time, running, waiting, kv_use, step_tokens, step_seconds);
  py::class_<CostModel>(m, "CostModel", "How long a step takes, without running it.")
      .def_static(
          "roofline", &MakeRoofline, py::kw_only(), py::arg("weight_bytes"),
          py::arg("flops_of_a_token"), py::arg("flops_of_a_sample"), py::arg("attention"),
          py::arg("bytes_per_second"), py::arg("flops_per_second"), py::arg("step_seconds"),
          py::arg("row_seconds") = 0.0,
          "A step takes as long as its bytes or its arithmetic, whichever is longer, and "
          "what launching it costs. attention: (window or 0, bytes and flops of one token's "
          "keys) for each kind of layer.")
      .def_static("table", &MakeTable, py::kw_only(), py::arg("rows"), py::arg("extra"),
                  py::arg("context"), py::arg("seconds"),
                  "Measured steps on a grid, linear in between: `rows` rows, one of which computes "
                  "`extra` tokens besides the one of each, with `context` tokens before.");
  m.attr("SERVE_REQUEST") = py::dtype::of<ServeRequest>();
  m.attr("GAP_BASE") = sim::GapHistogram::kBase;
  m.attr("GAP_FIRST") = sim::GapHistogram::kFirst;
  m.def("serve", &Serve, py::arg("config"), py::arg("cost"), py::arg("requests"), py::kw_only(),
        py::arg("lag") = 0, py::arg("sample_interval") = 0.1, py::arg("submit_seconds") = 0.0,
        py::arg("max_seconds") = 1e9,
        "Runs the engine under traffic in virtual time. ValueError names what is wrong with the "
        "configuration or a request.");
}

}  // namespace octavo::bindings

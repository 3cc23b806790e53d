// The host tier as Python sees it: a pool in this process's memory, or one that an object of Python
// copies to and from.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/typing.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core_module.h"
#include "engine/core_engine.h"
#include "transfer/run_list.h"

namespace py = pybind11;

namespace octavo::bindings {
namespace {

using engine::CoreEngine;
using Bytes = py::array_t<uint8_t, py::array::c_style>;

// Runs handed over at once; a step or a load of more is handed over in parts.
constexpr size_t kMostRuns = 4096;

// A copier in Python, see Engine.add_device_tier. It is called once a batch, not once a block. Made
// and destroyed with the GIL, called without.
class PythonCopier final : public transfer::BlockCopier {
 public:
  PythonCopier(py::object copier, Bytes memory, std::vector<int64_t> block_bytes)
      : copier_(std::move(copier)),
        memory_(std::move(memory)),
        place_(reinterpret_cast<std::byte*>(memory_.mutable_data())),
        size_(static_cast<size_t>(memory_.nbytes())),
        block_bytes_(std::move(block_bytes)),
        out_(kMostRuns),
        in_(kMostRuns) {}

  std::byte* Place(size_t bytes) override { return bytes <= size_ ? place_ : nullptr; }
  void Out(int group, int32_t block, std::byte* host) override {
    Add(out_, RunOf(group, block, host));
  }
  void In(int group, int32_t block, const std::byte* host) override {
    Add(in_, RunOf(group, block, host));
  }
  uint64_t Begin() override {
    HandOver();
    ++begun_;
    handed_over_ = false;
    Call([&] { copier_.attr("begin")(begun_); });
    return begun_;
  }
  transfer::CopyProgress Poll() override {
    if (ended_ < begun_) {
      Call([&] { ended_ = std::max(ended_, copier_.attr("ended")().cast<uint64_t>()); });
    }
    return {ended_, failed_};
  }
  void Drain() override {
    if (ended_ == begun_ && !handed_over_) return;
    Call([&] { copier_.attr("drain")(); });
    ended_ = begun_;
  }

 private:
  transfer::Run RunOf(int group, int32_t block, const std::byte* host) const {
    const int64_t bytes = block_bytes_[static_cast<size_t>(group)];
    return {block * bytes, host - place_, bytes};
  }
  void Add(transfer::RunList& list, const transfer::Run& run) {
    if (list.Add(run)) return;
    HandOver();
    list.Add(run);
  }
  // What leaves before what comes: a block may be loaded to where another has just left.
  void HandOver() {
    HandOver("out", out_);
    HandOver("into", in_);
  }
  void HandOver(const char* method, transfer::RunList& list) {
    if (list.empty()) return;
    handed_over_ = true;
    Call([&] {
      py::array_t<int64_t> runs({static_cast<py::ssize_t>(list.runs().size()), py::ssize_t{3}});
      std::memcpy(runs.mutable_data(), list.runs().data(), list.runs().size_bytes());
      copier_.attr(method)(std::move(runs));
    });
    list.Clear();
  }

  // An exception ends what was begun, and the batch that is being made, as failed.
  template <typename F>
  void Call(F call) {
    py::gil_scoped_acquire gil;
    try {
      call();
    } catch (py::error_already_set& error) {
      Fail(error);
    } catch (const std::exception&) {  // what the copier returned is no number
      Settle();
    }
  }
  void Fail(py::error_already_set& error) {
    if (error.matches(PyExc_KeyboardInterrupt))
      PyErr_SetInterrupt();  // again, where it is expected
    Settle();
  }
  void Settle() {
    try {
      copier_.attr("drain")();
    } catch (py::error_already_set&) {  // a device that cannot be waited for runs nothing any more
    }
    ended_ = begun_;
    failed_ = begun_ + (handed_over_ ? 1 : 0);
  }

  py::object copier_;
  Bytes memory_;
  std::byte* place_;
  size_t size_;
  std::vector<int64_t> block_bytes_;
  transfer::RunList out_;
  transfer::RunList in_;
  bool handed_over_ = false;  // part of the batch that Begin will number
  uint64_t begun_ = 0;
  uint64_t ended_ = 0;
  uint64_t failed_ = 0;
};

void AddHostTier(CoreEngine& engine, uint64_t pool, int64_t parent_bytes, int64_t budget_bytes) {
  const Turn turn(engine);
  const Status s =
      engine.AddHostTier(reinterpret_cast<std::byte*>(pool), parent_bytes, budget_bytes);
  if (!s.ok()) Throw(s);
}

void AddDeviceTier(CoreEngine& engine, py::object copier, Bytes memory, int64_t parent_bytes) {
  std::vector<int64_t> block_bytes;
  for (int g = 0; g < engine.kv().num_groups(); ++g) {
    block_bytes.push_back(parent_bytes / engine.kv().pool().split(g));
  }
  const int64_t budget = memory.nbytes();
  const Turn turn(engine);
  const Status s = engine.AddHostTier(
      std::make_unique<PythonCopier>(std::move(copier), std::move(memory), std::move(block_bytes)),
      parent_bytes, budget);
  if (!s.ok()) Throw(s);
}

bool WaitForLoads(CoreEngine& engine) {
  const Turn turn(engine);
  py::gil_scoped_release release;
  return engine.WaitForLoads();
}

py::typing::Dict<py::str, py::int_> StatsOf(const CoreEngine& engine) {
  const Turn turn(engine);
  const transfer::HostTierStats s =
      engine.host_tier() ? engine.host_tier()->stats() : transfer::HostTierStats{};
  py::typing::Dict<py::str, py::int_> d;
  d["stored_blocks"] = s.stored_blocks;
  d["loaded_blocks"] = s.loaded_blocks;
  d["evicted_blocks"] = s.evicted_blocks;
  d["failed_blocks"] = s.failed_blocks;
  d["blocks"] = s.blocks;
  d["capacity_bytes"] = s.capacity_bytes;
  return d;
}

}  // namespace

void BindHostTier(py::class_<CoreEngine>& engine) {
  engine
      .def("add_host_tier", &AddHostTier, py::arg("pool"), py::arg("parent_bytes"),
           py::arg("budget_bytes"),
           "Keeps what the pool evicts in host memory. `pool`: the address of the KV pool, which "
           "must outlive the engine, `parent_bytes` a block. RuntimeError after the first request, "
           "and where there is a tier already.")
      .def("add_device_tier", &AddDeviceTier, py::arg("copier"), py::arg("memory").noconvert(),
           py::arg("parent_bytes"),
           "The same for a pool that `copier` copies to and from `memory`, a row of uint8 that the "
           "tier fills. It has out(runs) and into(runs), which ask for copies, runs [n, 3] int64 "
           "of (pool offset, memory offset, bytes); begin(batch), after which they are under way "
           "and ordered before what is launched next; ended(), the last batch that is over; and "
           "drain(), which waits for all. What raises fails the batches under way, no more.")
      .def("wait_for_loads", &WaitForLoads,
           "Returns when nothing is being loaded from the host tier; False: nothing was.")
      .def("host_tier_stats", &StatsOf,
           "What the host tier stored, loaded, gave up and failed to copy, in blocks; zeros "
           "without one.");
}

}  // namespace octavo::bindings

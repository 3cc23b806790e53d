// What the programs of this folder share: random memory of the device, and the time of a call in
// replays of a graph.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "octavo/status.h"

namespace octavo::cuda {

inline constexpr double kRotatedBytes = 260e6;  // more than four times L2

inline void Check(cudaError_t e, const char* what) {
  if (e == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(e));
  std::exit(1);
}

inline void Check(const Status& s) {
  if (s.ok()) return;
  std::fprintf(stderr, "%s\n", s.message().c_str());
  std::exit(1);
}

template <typename T>
T* Allocate(int64_t count) {
  void* p = nullptr;
  Check(cudaMalloc(&p, static_cast<size_t>(count) * sizeof(T)), "cudaMalloc");
  return static_cast<T*>(p);
}

template <typename T>
T* Upload(const std::vector<T>& v) {
  T* p = Allocate<T>(static_cast<int64_t>(v.size()));
  Check(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
  return p;
}

// Random bfloat16 of about unit size: a seed on the host, doubled on the device.
inline uint16_t* RandomElements(int64_t count) {
  constexpr int64_t kSeed = 1 << 24;
  std::mt19937 rng(1);
  std::vector<uint16_t> seed(static_cast<size_t>(std::min(count, kSeed)));
  for (uint16_t& x : seed) x = static_cast<uint16_t>(0x3f00 | (rng() & 0x80ff));
  auto* const p = Allocate<uint16_t>(count);
  Check(cudaMemcpy(p, seed.data(), seed.size() * 2, cudaMemcpyHostToDevice), "cudaMemcpy");
  for (auto done = static_cast<int64_t>(seed.size()); done < count; done *= 2) {
    const int64_t more = std::min(done, count - done);
    Check(cudaMemcpy(p + done, p, static_cast<size_t>(more) * 2, cudaMemcpyDeviceToDevice), "copy");
  }
  return p;
}

// Captures `count` calls of enqueue(i) into a graph; the median time of `samples` replays over
// `count`, in microseconds.
template <typename F>
double Replay(cudaStream_t stream, int samples, int count, F enqueue) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  Check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < count; ++i) enqueue(i);
  Check(cudaStreamEndCapture(stream, &graph), "capture");
  Check(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  std::vector<cudaEvent_t> events(static_cast<size_t>(samples) + 1);
  for (cudaEvent_t& e : events) Check(cudaEventCreate(&e), "event");
  for (int i = 0; i < 2; ++i) Check(cudaGraphLaunch(exec, stream), "launch");
  Check(cudaEventRecord(events[0], stream), "event");
  for (size_t i = 1; i < events.size(); ++i) {
    Check(cudaGraphLaunch(exec, stream), "launch");
    Check(cudaEventRecord(events[i], stream), "event");
  }
  Check(cudaStreamSynchronize(stream), "replay");
  std::vector<float> ms(static_cast<size_t>(samples));
  for (size_t i = 0; i < ms.size(); ++i) {
    Check(cudaEventElapsedTime(&ms[i], events[i], events[i + 1]), "event");
  }
  for (cudaEvent_t e : events) cudaEventDestroy(e);
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  std::sort(ms.begin(), ms.end());
  return static_cast<double>(ms[ms.size() / 2]) * 1000.0 / count;
}

}  // namespace octavo::cuda

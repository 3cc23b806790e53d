// The part of the CUDA runtime that the launchers and their tests call, on the emulator. Streams
// are one queue; a captured graph is the list of its launches.
#include <cuda_runtime_api.h>
#include <cxxabi.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "emulator/grid.h"
#include "emulator/kernels.h"
#include "emulator/memory.h"

using namespace octavo::emulator;

namespace {

struct Kernel {
  Invoke invoke;
  size_t params_bytes;
  std::string name;
  int shared_limit = 48 * 1024;
};

// Facts of the device: an H200's, but for its size.
struct Facts {
  int multiprocessors = 5;
  int major = 9;
  int shared_per_block = 227 * 1024;
  int shared_per_multiprocessor = 228 * 1024;
};

// EMULATOR_DEVICE=80 makes it an A100's, without clusters and dependent launches.
Facts ReadFacts() {
  Facts facts;
  const char* const device = getenv("EMULATOR_DEVICE");
  if (device != nullptr && strcmp(device, "80") == 0) {
    facts = {3, 8, 163 * 1024, 164 * 1024};
  }
  return facts;
}

const Facts& TheFacts() {
  static const Facts facts = ReadFacts();
  return facts;
}

using Work = std::function<void()>;

struct Stream {
  std::unique_ptr<std::vector<Work>> captured;
};

std::recursive_mutex mutex;
std::map<const void*, Kernel>& Kernels() {
  static std::map<const void*, Kernel> kernels;
  return kernels;
}
cudaError_t last_error = cudaSuccess;
std::string last_message;

cudaError_t Keep(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t Finish() {
  if (FinishGrids()) return cudaSuccess;
  last_message = TakeFault();
  fprintf(stderr, "kernel of %s\n", last_message.c_str());
  return Keep(cudaErrorLaunchFailure);
}

std::string Demangled(const char* type) {
  int status = 0;
  char* const name = abi::__cxa_demangle(type, nullptr, nullptr, &status);
  std::string text = status == 0 ? name : type;
  free(name);
  return text;
}

// Now, or when the graph that is being captured is launched.
cudaError_t Enqueue(cudaStream_t stream, Work work) {
  auto* const s = reinterpret_cast<Stream*>(stream);
  if (s != nullptr && s->captured != nullptr) {
    s->captured->push_back(std::move(work));
  } else {
    work();
  }
  return cudaSuccess;
}

}  // namespace

void octavo::emulator::NoteKernel(const void* kernel, Invoke invoke, size_t params_bytes,
                                  const char* type) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  if (Kernels().count(kernel) == 0) {
    Kernels()[kernel] = {invoke, params_bytes, Demangled(type)};
  }
}

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const Facts& facts = TheFacts();
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = facts.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = facts.shared_per_block;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = facts.shared_per_multiprocessor;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = facts.major;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    default:
      return Keep(cudaErrorInvalidValue);
  }
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = AllocateDevice(bytes);
  return *memory == nullptr ? Keep(cudaErrorMemoryAllocation) : cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  const cudaError_t error = Finish();
  if (memory == nullptr) return error;
  if (!FreeDevice(memory)) {
    fprintf(stderr, "device memory is freed that something wrote beyond, or twice\n");
    abort();
  }
  return error;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  const cudaError_t error = Finish();
  if (bytes > 0) memcpy(to, from, bytes);
  return error;
}

cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  const cudaError_t error = Finish();
  memset(to, value, bytes);
  return error;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  return Enqueue(stream, [=] {
    Finish();
    if (bytes > 0) memcpy(to, from, bytes);
  });
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  return Enqueue(stream, [=] {
    Finish();
    memset(to, value, bytes);
  });
}

cudaError_t cudaDeviceSynchronize() {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  return Finish();
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaDeviceSynchronize(); }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = reinterpret_cast<cudaStream_t>(new Stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete reinterpret_cast<Stream*>(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  reinterpret_cast<Stream*>(stream)->captured = std::make_unique<std::vector<Work>>();
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  auto* const s = reinterpret_cast<Stream*>(stream);
  *graph = reinterpret_cast<cudaGraph_t>(s->captured.release());
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = reinterpret_cast<cudaGraphExec_t>(
      new std::vector<Work>(*reinterpret_cast<std::vector<Work>*>(graph)));
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  for (const Work& work : *reinterpret_cast<std::vector<Work>*>(exec)) work();
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<std::vector<Work>*>(graph);
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete reinterpret_cast<std::vector<Work>*>(exec);
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = reinterpret_cast<cudaEvent_t>(new int);
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete reinterpret_cast<int*>(event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaDeviceSynchronize(); }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? last_message.c_str() : "an error of the CUDA emulator";
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value > TheFacts().shared_per_block) return Keep(cudaErrorInvalidValue);
  Kernels().at(kernel).shared_limit = value;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function,
                                void** args) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  const Kernel& kernel = Kernels().at(function);
  LaunchConfig launch;
  launch.grid = config->gridDim;
  launch.block = config->blockDim;
  launch.shared_bytes = static_cast<int>(config->dynamicSmemBytes);
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& a = config->attrs[i];
    if (a.id == cudaLaunchAttributeClusterDimension) launch.cluster = a.val.clusterDim.x;
    if (a.id == cudaLaunchAttributeProgrammaticStreamSerialization) {
      launch.dependent = a.val.programmaticStreamSerializationAllowed != 0;
    }
  }
  const bool newer = launch.cluster > 1 || launch.dependent;
  if (launch.grid.x == 0 || launch.grid.y == 0 || launch.grid.y > 65535 || launch.block.x == 0 ||
      launch.block.y == 0 || launch.block.x * launch.block.y > kMaxThreads || launch.cluster > 8 ||
      launch.grid.x % launch.cluster != 0 || launch.shared_bytes > kernel.shared_limit ||
      (newer && TheFacts().major < 9)) {
    return Keep(cudaErrorInvalidConfiguration);
  }
  const auto params = std::make_shared<std::vector<unsigned char>>(kernel.params_bytes);
  memcpy(params->data(), args[0], kernel.params_bytes);
  const Call call{kernel.invoke, function, nullptr};
  const char* const name = kernel.name.c_str();
  return Enqueue(config->stream, [=] {
    Call with = call;
    with.params = params->data();
    LaunchGrid(with, params->size(), name, launch);
  });
}

}  // extern "C"

#include <array>

#include "base/ops_check.h"
#include "common/launch.h"
#include "octavo/cuda_ops.h"

namespace octavo::cuda {
namespace {

constexpr int kMaxDevices = 64;
// A block gets 48 KiB without asking, but the kernel's static arrays count too.
constexpr int kDefaultSharedBytes = 32 * 1024;
constexpr int kHopperMajor = 9;

Status ReadFacts(int device, DeviceFacts* facts) {
  int major = 0, minor = 0;
  const std::pair<cudaDeviceAttr, int*> wanted[] = {
      {cudaDevAttrMultiProcessorCount, &facts->multiprocessors},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, &facts->shared_per_block},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, &facts->shared_per_multiprocessor},
      {cudaDevAttrComputeCapabilityMajor, &major},
      {cudaDevAttrComputeCapabilityMinor, &minor},
  };
  for (const auto& [attribute, value] : wanted) {
    OCTAVO_RETURN_IF_ERROR(
        ToStatus(cudaDeviceGetAttribute(value, attribute, device), "reading the device"));
  }
  facts->dependent_launch = major >= kHopperMajor;
  facts->clusters = major >= kHopperMajor;
  facts->wgmma = major == kHopperMajor && minor == 0;
  return Status::Ok();
}

// Sets *previous where there is a device to go back to.
Status EnterDevice(int device, int* previous) {
  int current = 0;
  OCTAVO_RETURN_IF_ERROR(ToStatus(cudaGetDevice(&current), "cudaGetDevice"));
  if (current == device) return Status::Ok();
  OCTAVO_RETURN_IF_ERROR(ToStatus(cudaSetDevice(device), "cudaSetDevice"));
  *previous = current;
  return Status::Ok();
}

}  // namespace

Result<DeviceFacts> CurrentDeviceFacts() {
  // One copy a thread: no lock in the step path, and a thread asks the driver once.
  static thread_local std::array<DeviceFacts, kMaxDevices> known;
  int device = 0;
  OCTAVO_RETURN_IF_ERROR(ToStatus(cudaGetDevice(&device), "cudaGetDevice"));
  if (device < 0 || device >= kMaxDevices) return Status::Internal("more than 64 devices");
  DeviceFacts& facts = known[static_cast<size_t>(device)];
  if (facts.multiprocessors == 0) {
    DeviceFacts read;
    OCTAVO_RETURN_IF_ERROR(ReadFacts(device, &read));
    facts = read;
  }
  return facts;
}

Status AllowSharedMemory(const void* kernel, int bytes) {
  if (bytes <= kDefaultSharedBytes) return Status::Ok();
  OCTAVO_RETURN_IF_ERROR(
      ToStatus(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
               "cudaFuncSetAttribute"));
  return ToStatus(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                       cudaSharedmemCarveoutMaxShared),
                  "cudaFuncSetAttribute");
}

Status LaunchKernel(const void* kernel, const LaunchShape& shape, void** args) {
  OCTAVO_RETURN_IF_ERROR(AllowSharedMemory(kernel, shape.shared_bytes));
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (shape.dependent) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {shape.cluster, 1, 1};
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(shape.grid, shape.grid_y);
  config.blockDim = dim3(shape.threads, shape.threads_y);
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.stream = shape.stream;
  config.attrs = attributes;
  config.numAttrs = count;
  return ToStatus(cudaLaunchKernelExC(&config, kernel, args), "launching a kernel");
}

DeviceScope::DeviceScope(int device) : status_(EnterDevice(device, &previous_)) {}

DeviceScope::~DeviceScope() {
  if (previous_ >= 0) cudaSetDevice(previous_);
}

}  // namespace octavo::cuda

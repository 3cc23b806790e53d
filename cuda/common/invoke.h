// From a kernel and its parameters to a launch: all that has to know the kernel's type. Included by
// common/launch.h; the emulator of tests/emulator has one of its own.
#pragma once

namespace octavo::cuda {

template <typename Params>
Status Launch(void (*kernel)(Params), const LaunchShape& shape, const Params& params) {
  void* args[] = {const_cast<Params*>(&params)};
  return LaunchKernel(reinterpret_cast<const void*>(kernel), shape, args);
}

}  // namespace octavo::cuda

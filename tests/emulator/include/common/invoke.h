// Stands before cuda/common/invoke.h in the emulator: besides launching, it tells how a kernel of
// these parameters is called.
#pragma once

#include "emulator/kernels.h"

namespace octavo::cuda {

template <typename Params>
Status Launch(void (*kernel)(Params), const LaunchShape& shape, const Params& params) {
  emulator::NoteKernel(
      reinterpret_cast<const void*>(kernel),
      [](const void* k, const void* p) {
        reinterpret_cast<void (*)(Params)>(const_cast<void*>(k))(*static_cast<const Params*>(p));
      },
      sizeof(Params), typeid(Params).name());
  void* args[] = {const_cast<Params*>(&params)};
  return LaunchKernel(reinterpret_cast<const void*>(kernel), shape, args);
}

}  // namespace octavo::cuda

// The entry point of one libFuzzer program; OCTAVO_FUZZ_TARGET names the target.
#include "fuzz/targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  octavo::fuzz::OCTAVO_FUZZ_TARGET({data, size});
  return 0;
}

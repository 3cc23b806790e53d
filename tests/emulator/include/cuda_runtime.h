// Stands before the toolkit's cuda_runtime.h when the kernels are compiled as C++ for the emulator.
#pragma once

#include_next <cuda_runtime.h>

#include "emulator/device.h"

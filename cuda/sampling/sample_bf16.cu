#include "sampling/sample.cuh"

namespace octavo::cuda {

template Status LaunchSampleOf<__nv_bfloat16>(LaunchShape, const SampleParams&, bool);

}  // namespace octavo::cuda

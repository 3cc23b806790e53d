#include "sampling/sample.cuh"

namespace octavo::cuda {

template Status LaunchSampleOf<__half>(LaunchShape, const SampleParams&, bool);

}  // namespace octavo::cuda

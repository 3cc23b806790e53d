#include "sampling/sample.cuh"

namespace octavo::cuda {

template Status LaunchSampleOf<float>(LaunchShape, const SampleParams&, bool);

}  // namespace octavo::cuda

#include "octavo/tensor_view.h"

#include <string_view>

#include "base/clock.h"
#include "doctest/doctest.h"
#include "octavo/dtype.h"

namespace octavo {
namespace {

TEST_CASE("a dense view is row-major") {
  float data[24];
  const TensorView v = TensorView::Dense(data, DType::kF32, {2, 3, 4});
  CHECK(v.rank == 3);
  CHECK(v.stride[0] == 12);
  CHECK(v.stride[1] == 4);
  CHECK(v.stride[2] == 1);
  CHECK(v.num_elements() == 24);
  CHECK(v.last_dim_contiguous());
  CHECK(v.ptr<float>() == data);
}

TEST_CASE("a view with a gap in its last dimension is not contiguous there") {
  float data[8];
  TensorView v = TensorView::Dense(data, DType::kF32, {4});
  v.stride[0] = 2;
  CHECK_FALSE(v.last_dim_contiguous());
  v.shape[0] = 1;
  CHECK(v.last_dim_contiguous());
}

TEST_CASE("a view of nothing is undefined") { CHECK_FALSE(TensorView{}.defined()); }

TEST_CASE("every dtype has a size and a name") {
  CHECK(DTypeSize(DType::kF32) == 4);
  CHECK(DTypeSize(DType::kBF16) == 2);
  CHECK(DTypeSize(DType::kF8E4M3) == 1);
  CHECK(DTypeSize(DType::kU64) == 8);
  CHECK(std::string_view(DTypeName(DType::kI32)) == "int32");
}

TEST_CASE("the steady clock never goes back") {
  const int64_t before = SteadyClock().NowMicros();
  CHECK(SteadyClock().NowMicros() >= before);
}

}  // namespace
}  // namespace octavo

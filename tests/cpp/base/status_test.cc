#include "octavo/status.h"

#include <memory>

#include "doctest/doctest.h"

namespace octavo {
namespace {

TEST_CASE("a status is ok unless it says why not") {
  CHECK(Status::Ok().ok());
  const Status bad = Status::InvalidArgument("top_p=2 is out of range");
  CHECK_FALSE(bad.ok());
  CHECK(bad.code() == StatusCode::kInvalidArgument);
  CHECK(bad.message() == "top_p=2 is out of range");
}

TEST_CASE("a result holds a value or the status that says why there is none") {
  const Result<int> seven = 7;
  CHECK(seven.ok());
  CHECK(seven.status().ok());
  CHECK(*seven == 7);
  const Result<int> none = Status::NotFound("no such request");
  CHECK_FALSE(none.ok());
  CHECK(none.status().code() == StatusCode::kNotFound);
}

TEST_CASE("a result gives up a value that can only be moved") {
  Result<std::unique_ptr<int>> r = std::make_unique<int>(3);
  const std::unique_ptr<int> p = std::move(*r);
  CHECK(*p == 3);
}

}  // namespace
}  // namespace octavo

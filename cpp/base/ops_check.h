// Small checks that the validation of ops is composed of. Each returns the first fault as a Status
// that names the op, the tensor, what it is and what it must be; none allocates while everything is
// right.
#pragma once

#include <initializer_list>
#include <optional>

#include "octavo/status.h"
#include "octavo/tensor_view.h"

namespace octavo {

// One tensor argument of one op, for messages.
struct OpTensor {
  const char* op;
  const char* name;
  const TensorView& view;
  bool written = false;
};

inline constexpr int64_t kAnyExtent = -1;

Status InvalidOp(const char* op, const std::string& what);

// Rank, extents (kAnyExtent matches all), non-null data, contiguous last dimension, no dimension of
// a written tensor folded onto itself by a stride of 0.
Status CheckShape(const OpTensor& t, std::initializer_list<int64_t> extents);
Status CheckDType(const OpTensor& t, DType want);
// float32, bfloat16 or float16.
Status CheckFloat(const OpTensor& t);
// `t` has the dtype of `other`.
Status CheckSameDType(const OpTensor& t, const OpTensor& other);
// Same rank and extents as `other`.
Status CheckSameShape(const OpTensor& t, const OpTensor& other);

// A vector of n elements (kAnyExtent: of any number).
Status CheckColumn(const char* op, const char* name, const TensorView& v, DType dtype, int64_t n,
                   bool written = false);

// `out` shares no memory with `inputs`: index tensors, which are checked before anything is written
// (what an output overwrites later would be followed unchecked), and what is copied as it lies.
// REQUIRES: shapes and strides of all were checked.
Status CheckApart(const char* op, const TensorView& out,
                  std::initializer_list<const TensorView*> inputs);

// out = x weight^T + bias; behind a gate the weight has the rows of both halves, and out half as
// many columns.
Status CheckProduct(const char* op, const TensorView& out, const TensorView& x,
                    const TensorView& weight, const std::optional<TensorView>& bias, bool gated);

}  // namespace octavo

// Hands the first fault of an expression up. The one macro for control flow here: a dozen checks in
// a row read as a list.
#define OCTAVO_RETURN_IF_ERROR(expr)                       \
  do {                                                     \
    if (::octavo::Status s_ = (expr); !s_.ok()) return s_; \
  } while (0)

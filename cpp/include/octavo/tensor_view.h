// TensorView: a borrowed, strided, typed view of memory that somebody else owns (a torch tensor,
// the KV pool, a column). Copying one copies the description, never the data. Any thread may read
// one.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "octavo/dtype.h"

namespace octavo {

inline constexpr int kMaxRank = 6;

struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int rank = 0;
  int64_t shape[kMaxRank] = {};
  int64_t stride[kMaxRank] = {};  // in elements, 64-bit: pools cross 2^31 elements

  // A dense row-major view. REQUIRES: dims.size() <= kMaxRank.
  static TensorView Dense(void* data, DType dtype, std::initializer_list<int64_t> dims) {
    TensorView v;
    v.data = data;
    v.dtype = dtype;
    v.rank = static_cast<int>(dims.size());
    int i = 0;
    for (int64_t d : dims) v.shape[i++] = d;
    int64_t step = 1;
    for (i = v.rank - 1; i >= 0; --i) {
      v.stride[i] = step;
      step *= v.shape[i];
    }
    return v;
  }

  bool defined() const { return data != nullptr; }

  int64_t num_elements() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= shape[i];
    return n;
  }

  bool last_dim_contiguous() const {
    return rank == 0 || stride[rank - 1] == 1 || shape[rank - 1] <= 1;
  }

  template <typename T>
  T* ptr() const {
    return static_cast<T*>(data);
  }
};

}  // namespace octavo

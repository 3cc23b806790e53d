// Tensors for the tests of ops: owned memory with gaps between rows, read and written as doubles.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "octavo/ops.h"

namespace octavo::cpu {

inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

namespace decoded {

inline double Half(uint16_t h) {
  const int exponent = (h >> 10) & 31, mantissa = h & 1023;
  const double sign = (h & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == 31) return mantissa != 0 ? kNan : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

// e4m3 has no infinity: its largest exponent holds numbers up to 448, and all ones are NaN.
inline double E4m3(uint8_t code) {
  const int exponent = (code >> 3) & 15, mantissa = code & 7;
  const double sign = (code & 0x80) != 0 ? -1.0 : 1.0;
  if ((code & 0x7f) == 0x7f) return kNan;
  if (exponent == 0) return sign * std::ldexp(mantissa, -9);
  return sign * std::ldexp(8 + mantissa, exponent - 10);
}

// What every code stands for: tests on a GPU read hundreds of millions of numbers.
template <size_t kCodes, typename F>
std::vector<double> Table(F decode) {
  std::vector<double> table;
  for (size_t code = 0; code < kCodes; ++code) table.push_back(decode(code));
  return table;
}

}  // namespace decoded

inline double FromHalf(uint16_t h) {
  static const std::vector<double> table =
      decoded::Table<1 << 16>([](size_t code) { return decoded::Half(uint16_t(code)); });
  return table[h];
}

inline double FromE4m3(uint8_t code) {
  static const std::vector<double> table =
      decoded::Table<1 << 8>([](size_t code) { return decoded::E4m3(uint8_t(code)); });
  return table[code];
}

// The code of x > 0 in a format of so many bits of fraction and this bias of exponents: that of the
// nearest number, of two equally near ones the even code. REQUIRES: the format reaches that far.
template <int kFraction, int kBias>
uint32_t NearestCode(double x) {
  constexpr int kDropped = 52 - kFraction;  // bits of a double's fraction
  // Below the normal numbers a code counts units; what is rounded up beyond is the first of them.
  if (x < std::ldexp(1.0, 1 - kBias)) {
    return static_cast<uint32_t>(std::nearbyint(std::ldexp(x, kBias - 1 + kFraction)));
  }
  uint64_t bits = std::bit_cast<uint64_t>(x);
  bits += (uint64_t{1} << (kDropped - 1)) - 1 + ((bits >> kDropped) & 1);
  return static_cast<uint32_t>((bits >> kDropped) - (uint64_t{1023 - kBias} << kFraction));
}

// Rounds a finite double to the nearest half, ties to even; NaN stays NaN.
inline uint16_t ToHalf(double x) {
  if (std::isnan(x)) return 0x7e00;
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  x = std::fabs(x);
  if (x >= 65520.0) return sign | 0x7c00;
  return static_cast<uint16_t>(sign | NearestCode<10, 15>(x));
}

inline double FromBf16(uint16_t h) {
  const uint32_t bits = static_cast<uint32_t>(h) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return static_cast<double>(f);
}

inline uint16_t ToBf16(double x) {
  const float f = static_cast<float>(x);
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  if (std::isnan(x)) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Rounds to the nearest number of e4m3, ties to even; what lies beyond 448 becomes that.
inline uint8_t ToE4m3(double x) {
  const auto sign = static_cast<uint8_t>(std::signbit(x) ? 0x80 : 0);
  if (std::isnan(x)) return sign | 0x7f;
  x = std::fabs(x);
  return static_cast<uint8_t>(sign | (x >= 448.0 ? 0x7e : NearestCode<3, 7>(x)));
}

// Numbers of about a normal distribution: one of a table's, moved by up to 2^-10, so that no two
// are alike but by chance. What std::normal_distribution computes for each takes several times as
// long.
class Normals {
 public:
  double operator()(std::mt19937_64& rng) const {
    const uint64_t bits = rng();
    return table_[bits % kCount] + 0x1p-63 * static_cast<double>(bits >> 11);
  }

 private:
  static constexpr uint64_t kCount = 2048;
  static std::vector<double> Drawn() {
    std::mt19937_64 rng(20);
    std::normal_distribution<double> normal;
    std::vector<double> drawn;
    for (uint64_t i = 0; i < kCount; ++i) drawn.push_back(normal(rng));
    return drawn;
  }
  static const std::vector<double>& Table() {
    static const std::vector<double> table = Drawn();
    return table;
  }
  const double* table_ = Table().data();
};

// A tensor of float32, bfloat16, float16 or e4m3 whose rows stand `gap` elements apart in memory.
// All of it, the gaps too, starts as NaN.
class Tensor {
 public:
  Tensor(DType dtype, std::initializer_list<int64_t> shape, int64_t gap = 0) {
    view_ = TensorView::Dense(nullptr, dtype, shape);
    const int last = view_.rank - 1;
    int64_t step = view_.shape[last] + gap;
    for (int d = last - 1; d >= 0; --d) {
      view_.stride[d] = step;
      step *= view_.shape[d];
    }
    bytes_.assign(static_cast<size_t>(step * DTypeSize(dtype)) + 8, 0xff);
  }

  // Constness is the tests' business: an op writes through the same view that it reads through.
  TensorView view() const {
    TensorView v = view_;
    v.data = const_cast<unsigned char*>(bytes_.data());
    return v;
  }
  const std::vector<unsigned char>& bytes() const { return bytes_; }
  int64_t dim(int d) const { return view_.shape[d]; }

  int64_t Offset(std::initializer_list<int64_t> index) const {
    int64_t offset = 0;
    int d = 0;
    for (int64_t i : index) offset += i * view_.stride[d++];
    return offset;
  }
  double At(std::initializer_list<int64_t> index) const { return Get(Offset(index)); }
  void Set(std::initializer_list<int64_t> index, double x) { Put(Offset(index), x); }

  // Rounds to what the tensor can hold.
  double Rounded(double x) const {
    if (view_.dtype == DType::kBF16) return FromBf16(ToBf16(x));
    if (view_.dtype == DType::kF16) return FromHalf(ToHalf(x));
    if (view_.dtype == DType::kF8E4M3) return FromE4m3(ToE4m3(x));
    return static_cast<double>(static_cast<float>(x));
  }

  // Normal numbers in every element (not in the gaps).
  void Randomize(std::mt19937_64& rng, double scale = 1.0) {
    const Normals normal;
    Each([&](int64_t offset) { Put(offset, scale * normal(rng)); });
  }

  template <typename F>
  void Each(F f) const {
    const int last = view_.rank - 1;
    const int64_t size = last < 0 ? 0 : view_.shape[last];
    int64_t index[kMaxRank] = {};
    for (int64_t n = 0; n < view_.num_elements(); n += size) {
      int64_t offset = 0;
      for (int d = 0; d < last; ++d) offset += index[d] * view_.stride[d];
      for (int64_t i = 0; i < size; ++i) f(offset + i * view_.stride[last]);
      for (int d = last - 1; d >= 0 && ++index[d] == view_.shape[d]; --d) index[d] = 0;
    }
  }

  double Get(int64_t offset) const {
    if (view_.dtype == DType::kF32) return static_cast<double>(view().ptr<float>()[offset]);
    if (view_.dtype == DType::kF8E4M3) return FromE4m3(view().ptr<uint8_t>()[offset]);
    const uint16_t bits = view().ptr<uint16_t>()[offset];
    return view_.dtype == DType::kBF16 ? FromBf16(bits) : FromHalf(bits);
  }
  void Put(int64_t offset, double x) {
    if (view_.dtype == DType::kF32) {
      view().ptr<float>()[offset] = static_cast<float>(x);
    } else if (view_.dtype == DType::kF8E4M3) {
      view().ptr<uint8_t>()[offset] = ToE4m3(x);
    } else {
      view().ptr<uint16_t>()[offset] = view_.dtype == DType::kBF16 ? ToBf16(x) : ToHalf(x);
    }
  }

 private:
  TensorView view_;
  std::vector<unsigned char> bytes_;
};

// A column of integers (or floats) as a view.
template <typename T>
TensorView Column(std::vector<T>& v, DType dtype) {
  return TensorView::Dense(v.empty() ? nullptr : v.data(), dtype, {static_cast<int64_t>(v.size())});
}
inline TensorView Column(std::vector<int32_t>& v) { return Column(v, DType::kI32); }
inline TensorView Column(std::vector<int64_t>& v) { return Column(v, DType::kI64); }
inline TensorView Column(std::vector<uint64_t>& v) { return Column(v, DType::kU64); }
inline TensorView Column(std::vector<float>& v) { return Column(v, DType::kF32); }

// Whether `got` is `want` up to float32 arithmetic on terms of about `magnitude`, stored as
// `dtype`.
inline bool Close(DType dtype, double got, double want, double magnitude = 1.0) {
  const double ulp = dtype == DType::kBF16 ? 0x1p-8 : dtype == DType::kF16 ? 0x1p-11 : 0x1p-23;
  const double tiny = dtype == DType::kF16 ? 0x1p-24 : 0.0;
  return std::fabs(got - want) <= 1.01 * ulp * std::fabs(want) + tiny + 4e-6 * magnitude;
}

inline const DType kFloatTypes[] = {DType::kF32, DType::kBF16, DType::kF16};

// Runs f once for each instruction set of this machine.
template <typename F>
void ForEachIsa(F f) {
  const std::string before = Isa();
  for (const char* name : {"base", "avx2", "avx512"}) {
    if (!SetIsa(name).ok()) continue;
    CAPTURE(name);
    f();
  }
  REQUIRE(SetIsa(before.c_str()).ok());
}

inline bool Refused(const Status& s, const std::string& part) {
  INFO(s.message());
  CHECK(s.code() == StatusCode::kInvalidArgument);
  CHECK(s.message().find(part) != std::string::npos);
  return !s.ok();
}

}  // namespace octavo::cpu

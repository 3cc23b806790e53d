// Bytes: a fuzzer's input, read as the decisions of a target.
//
// It never fails: behind its end it answers zero, so every input is a whole program and a shorter
// one is a shorter program.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <string>

namespace octavo::fuzz {

class Bytes {
 public:
  explicit Bytes(std::span<const uint8_t> input) : left_(input) {}

  bool empty() const { return left_.empty(); }

  uint8_t Byte() {
    if (left_.empty()) return 0;
    const uint8_t byte = left_[0];
    left_ = left_.subspan(1);
    return byte;
  }
  uint64_t Word(int bytes) {
    uint64_t word = 0;
    for (int i = 0; i < bytes; ++i) word |= uint64_t{Byte()} << (8 * i);
    return word;
  }
  // [0, n). REQUIRES: 0 < n <= 256.
  int32_t Below(int32_t n) { return Byte() % n; }
  // [low, high]. REQUIRES: less than 256 apart.
  int32_t Between(int32_t low, int32_t high) { return low + Below(high - low + 1); }
  bool OneIn(int32_t n) { return Below(n) == n - 1; }

  // Small for the most part, at times one at which arithmetic goes wrong.
  int64_t Number() {
    constexpr int64_t kEdges[] = {-1,
                                  -2,
                                  255,
                                  256,
                                  65536,
                                  1 << 20,
                                  std::numeric_limits<int32_t>::max(),
                                  std::numeric_limits<int32_t>::min(),
                                  int64_t{1} << 32,
                                  std::numeric_limits<int64_t>::max(),
                                  std::numeric_limits<int64_t>::min()};
    constexpr int32_t kNumEdges = int32_t(sizeof(kEdges) / sizeof(kEdges[0]));
    const uint8_t byte = Byte();
    if (byte < 200) return byte % 40;
    if (byte < 240) return kEdges[byte % kNumEdges];
    return int64_t(Word(byte < 250 ? 4 : 8));
  }
  int32_t Int() {
    const int64_t number = Number();
    if (number > std::numeric_limits<int32_t>::max()) return std::numeric_limits<int32_t>::max();
    if (number < std::numeric_limits<int32_t>::min()) return std::numeric_limits<int32_t>::min();
    return int32_t(number);
  }
  // From [low, high] for the most part, else any.
  int32_t IntNear(int32_t low, int32_t high) { return OneIn(16) ? Int() : Between(low, high); }
  float Float() {
    constexpr float kEdges[] = {0.0f,
                                -0.0f,
                                1.0f,
                                -1.0f,
                                0.5f,
                                2.0f,
                                1e-30f,
                                1e30f,
                                100.0f,
                                std::numeric_limits<float>::infinity(),
                                -std::numeric_limits<float>::infinity(),
                                std::numeric_limits<float>::quiet_NaN(),
                                std::numeric_limits<float>::denorm_min(),
                                std::numeric_limits<float>::max()};
    return kEdges[Below(int32_t(sizeof(kEdges) / sizeof(kEdges[0])))];
  }
  std::string Text(int32_t most) {
    std::string text(size_t(Between(0, most)), '\0');
    for (char& c : text) c = char(Byte());
    return text;
  }

 private:
  std::span<const uint8_t> left_;
};

}  // namespace octavo::fuzz

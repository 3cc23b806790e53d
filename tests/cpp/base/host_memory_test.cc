#include "base/host_memory.h"

#include <cstdint>
#include <cstdlib>
#include <map>

#include "doctest/doctest.h"

namespace octavo {
namespace {

// Counts what is given out and taken back.
class CountingMemory final : public HostMemory {
 public:
  void* Allocate(size_t bytes) override {
    void* p = std::calloc(1, bytes);
    live[p] = bytes;
    return p;
  }
  void Free(void* data, size_t bytes) override {
    CHECK(live.at(data) == bytes);
    live.erase(data);
    std::free(data);
  }
  std::map<void*, size_t> live;
};

TEST_CASE("system memory is zero and aligned to a cache line") {
  const HostArray<int32_t> array(SystemMemory(), 1000);
  REQUIRE(array.size() == 1000);
  CHECK(reinterpret_cast<uintptr_t>(array.data()) % 64 == 0);
  int64_t sum = 0;
  for (size_t i = 0; i < array.size(); ++i) sum += array[i] != 0;
  CHECK(sum == 0);
}

TEST_CASE("an array gives its memory back once, also after moves") {
  CountingMemory memory;
  {
    HostArray<int64_t> a(memory, 10);
    HostArray<int64_t> b;
    b = std::move(a);
    CHECK(b.size() == 10);
    CHECK(memory.live.size() == 1);
    const HostArray<int64_t> c(std::move(b));
    CHECK(memory.live.size() == 1);
    CHECK(c.size() == 10);
  }
  CHECK(memory.live.empty());
}

TEST_CASE("an array of a memory that has none is empty") {
  class NoMemory final : public HostMemory {
    void* Allocate(size_t) override { return nullptr; }
    void Free(void*, size_t) override { FAIL("nothing was given out"); }
  } memory;
  const HostArray<int32_t> array(memory, 10);
  CHECK(array.data() == nullptr);
  CHECK(array.size() == 0);
}

TEST_CASE("a wish for large pages changes nothing that can be read") {
  constexpr size_t kBytes = size_t{5} << 20;
  HostArray<uint8_t> array(SystemMemory(), kBytes);
  REQUIRE(array.data());
  array[1] = 7;
  PreferLargePages(array.data(), kBytes);
  PreferLargePages(array.data() + 1, kBytes - 1);
  PreferLargePages(array.data() + 5, 3);
  PreferLargePages(nullptr, 0);
  CHECK(array[0] == 0);
  CHECK(array[1] == 7);
  CHECK(array[kBytes - 1] == 0);
}

}  // namespace
}  // namespace octavo

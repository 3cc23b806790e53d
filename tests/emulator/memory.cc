#include "emulator/memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <sstream>

#include "emulator/cta.h"

namespace octavo::emulator {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kAlign = 256;  // what cudaMalloc promises
constexpr int kPoison = 0xff;
constexpr int kSlack = 0xcb;
constexpr size_t kMostPoisoned = size_t{64} << 20;  // beyond that, filling costs more than it finds

struct Allocation {
  size_t bytes;
  unsigned char* map;
  size_t map_bytes;
};

std::mutex mutex;
// By the first byte.
std::map<const unsigned char*, Allocation>& Allocations() {
  static std::map<const unsigned char*, Allocation> all;
  return all;
}

size_t Room(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

// The allocation that holds the byte, or null.
const std::pair<const unsigned char* const, Allocation>* Find(const unsigned char* at) {
  auto it = Allocations().upper_bound(at);
  if (it == Allocations().begin()) return nullptr;
  --it;
  return at < it->first + it->second.bytes ? &*it : nullptr;
}

}  // namespace

void* AllocateDevice(size_t bytes) {
  const size_t room = Room(bytes), pages = (room + kPage - 1) / kPage * kPage;
  const size_t map_bytes = pages + 2 * kPage;
  void* const memory =
      mmap(nullptr, map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  auto* const map = static_cast<unsigned char*>(memory);
  if (pages > 0 && mprotect(map + kPage, pages, PROT_READ | PROT_WRITE) != 0) return nullptr;
  unsigned char* const first = map + kPage + pages - room;
  if (bytes <= kMostPoisoned) memset(first, kPoison, bytes);
  memset(first + bytes, kSlack, room - bytes);
  const std::lock_guard<std::mutex> lock(mutex);
  Allocations()[first] = {bytes, map, map_bytes};
  return first;
}

bool FreeDevice(void* p) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto it = Allocations().find(static_cast<unsigned char*>(p));
  if (it == Allocations().end()) return false;
  const Allocation a = it->second;
  bool intact = true;
  for (size_t i = a.bytes; i < Room(a.bytes); ++i) intact = intact && it->first[i] == kSlack;
  Allocations().erase(it);
  munmap(a.map, a.map_bytes);
  return intact;
}

bool IsDevice(const void* p) {
  const std::lock_guard<std::mutex> lock(mutex);
  return Find(static_cast<const unsigned char*>(p)) != nullptr;
}

void CheckDeviceRange(Cta& cta, const void* p, int bytes, int alignment,
                      std::source_location where) {
  const auto* const at = static_cast<const unsigned char*>(p);
  bool fits = false;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto* const found = Find(at);
    fits = found != nullptr && at + bytes <= found->first + found->second.bytes;
  }
  if (!fits) cta.Fault("an asynchronous copy reads " + NearestDevice(p), where);
  if (reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(alignment) != 0) {
    cta.Fault("an asynchronous copy reads from an address that is not aligned", where);
  }
}

std::string NearestDevice(const void* p) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto* const at = static_cast<const unsigned char*>(p);
  std::ostringstream text;
  text << "address " << p;
  auto it = Allocations().upper_bound(at);
  if (it != Allocations().begin()) {
    const auto& [first, a] = *std::prev(it);
    text << ", byte " << at - first << " from the start of an allocation of " << a.bytes;
  }
  return text.str();
}

}  // namespace octavo::emulator

// Barriers in shared memory. A barrier's state is in its own eight bytes, as on the device.
#include "emulator/mbarrier.h"

#include <cstring>

#include "emulator/hopper.h"

namespace octavo::emulator {
namespace {

constexpr uint64_t kMagic = 0x2bad;  // memory that nobody made a barrier of begins with ones
constexpr int kMaxArrivals = (1 << 12) - 1;
constexpr int kMaxBytes = (1 << 20) - 1;

struct State {
  uint64_t phase : 1;
  uint64_t arrivals : 12;  // of a phase
  uint64_t missing : 12;   // arrivals of this phase
  uint64_t magic : 15;
  int64_t bytes
      : 24;  // that this phase waits for; below 0 where they land before they are expected
};
static_assert(sizeof(State) == 8);

State Load(const unsigned char* at) {
  State s;
  memcpy(&s, at, sizeof(s));
  return s;
}

State LoadChecked(const unsigned char* at, Where where) {
  const State s = Load(at);
  if (s.magic != kMagic) Cta::Current().Fault("an mbarrier that was not initialised", where);
  return s;
}

void StoreState(unsigned char* at, State s) {
  if (s.missing == 0 && s.bytes == 0) {
    s.phase ^= 1;
    s.missing = s.arrivals;
  }
  memcpy(at, &s, sizeof(s));
}

}  // namespace

void InitMbarrier(uint32_t address, int arrivals, Where where) {
  Cta& cta = Cta::Current();
  if (arrivals < 1 || arrivals > kMaxArrivals) cta.Fault("an mbarrier's arrivals", where);
  State s{};
  s.arrivals = s.missing = static_cast<uint64_t>(arrivals) & 0xfff;
  s.magic = kMagic;
  memcpy(cta.At(address, 8, where), &s, sizeof(s));
}

void ArriveMbarrier(uint32_t address, int bytes, Where where) {
  Cta& cta = Cta::Current();
  cta.MayYield(4);
  unsigned char* const at = cta.At(address, 8, where);
  State s = LoadChecked(at, where);
  if (s.missing == 0) cta.Fault("an arrival too many at an mbarrier's phase", where);
  if (bytes < 0 || s.bytes + bytes > kMaxBytes) cta.Fault("an mbarrier's bytes", where);
  s.bytes += bytes;
  --s.missing;
  StoreState(at, s);
  cta.MayYield(4);
}

unsigned char* FindMbarrier(uint32_t address, Where where) {
  unsigned char* const at = Cta::Current().At(address, 8, where);
  LoadChecked(at, where);
  return at;
}

void CompleteBytes(unsigned char* mbarrier, int bytes) {
  State s = Load(mbarrier);
  s.bytes -= bytes;
  StoreState(mbarrier, s);
}

void WaitMbarrier(uint32_t address, uint32_t parity, Where where) {
  Cta& cta = Cta::Current();
  const unsigned char* const at = FindMbarrier(address, where);
  const auto over = [at, parity] { return Load(at).phase != (parity & 1); };
  cta.WaitUntil("mbarrier.try_wait", where, over);
  cta.MayYield(8);
}

}  // namespace octavo::emulator

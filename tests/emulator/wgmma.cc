// Products of a warpgroup. A warp's products stand in a queue of groups that run in order, at a
// moment drawn at random: at once, some time later or not before the wait.
#include <cuda_fp16.h>

#include <cmath>
#include <cstring>
#include <deque>
#include <limits>
#include <memory>
#include <vector>

#include "emulator/hopper.h"
#include "emulator/matrix.h"

namespace octavo::emulator {
namespace {

constexpr uint32_t kAll = 0xffffffffu;
constexpr int kRows = 16;  // of a warp
constexpr int kDepth = 16;

// The sums of a product's accumulators while it is under way.
struct Sums {
  float* d[kWarpLanes];
  int n = 0;
  int products = 0;       // not yet waited for
  std::vector<float> at;  // [kRows, n]
};

struct Product {
  WgmmaOperands operands;  // lane 0's
  const uint32_t* a[kWarpLanes];
  int warp = 0;  // of the warpgroup
  std::shared_ptr<Sums> sums;
  Where where;
};

struct Group {
  std::vector<Product> products;
  bool done = false;
};

struct WarpQueue {
  std::vector<Product> open;  // issued and not committed
  std::deque<std::shared_ptr<Group>> groups;
};

// The queues of a CTA's warps.
struct Queues {
  WarpQueue warps[kMaxWarps];
};

WarpQueue& QueueOfWarp() {
  Cta& cta = Cta::Current();
  if (cta.attachment() == nullptr) cta.attachment() = std::make_shared<Queues>();
  auto& queues = *static_cast<Queues*>(cta.attachment().get());
  return queues.warps[cta.lane().number / kWarpLanes];
}

// Element j of d in lane `lane` is this element of the warp's 16 rows.
int RowOf(int lane, int j) { return lane / 4 + j % 4 / 2 * 8; }
int ColumnOf(int lane, int j) { return j / 4 * 8 + lane % 4 * 2 + j % 2; }

// An operand in shared memory by its descriptor's bits: 128-byte swizzle, which exchanges bits 4 to
// 6 of an address with their exclusive or with bits 7 to 9.
class Operand {
 public:
  Operand(uint64_t descriptor, bool half) : d_(descriptor), half_(half) {}

  // Rows along k: element k of row r.
  float KMajor(int r, int k) const { return At(r / 8 * stride() + r % 8 * 128 + k * 2); }
  // Rows along n: column n of row k.
  float NMajor(int n, int k) const {
    return At(n / 64 * leading() + k / 8 * stride() + k % 8 * 128 + n % 64 * 2);
  }

 private:
  int leading() const { return static_cast<int>(d_ >> 16 & 0x3fff) * 16; }
  int stride() const { return static_cast<int>(d_ >> 32 & 0x3fff) * 16; }
  float At(int bytes) const {
    uint32_t address = static_cast<uint32_t>(d_ & 0x3fff) * 16 + static_cast<uint32_t>(bytes);
    address ^= (address >> 7 & 7) << 4;
    uint16_t bits;
    memcpy(&bits, Cta::Current().At(address, 2, Where::current()), sizeof(bits));
    return Widen(bits, half_);
  }

  uint64_t d_;
  bool half_;
};

void CheckDescriptor(uint64_t descriptor, Where where) {
  Cta& cta = Cta::Current();
  if (descriptor >> 62 != 1) cta.Fault("a matrix descriptor without the 128-byte swizzle", where);
  if ((descriptor >> 49 & 7) != 0) cta.Fault("a matrix descriptor with a base offset", where);
  // Blocks begin at multiples of 1024 bytes; a step along k stays within their first row.
  if ((descriptor & 0x3fff) * 16 % 1024 >= 128) {
    cta.Fault("a matrix descriptor that begins inside a swizzled block", where);
  }
}

void Compute(const Product& p) {
  const WgmmaOperands& o = p.operands;
  Sums& sums = *p.sums;
  float a[kRows][kDepth];
  if (o.a != nullptr) {
    for (int lane = 0; lane < kWarpLanes; ++lane) {
      for (int r = 0; r < 4; ++r) {
        const uint32_t x = p.a[lane][r];
        const int row = lane / 4 + r % 2 * 8, k = lane % 4 * 2 + r / 2 * 8;
        a[row][k] = Widen(static_cast<uint16_t>(x), o.half);
        a[row][k + 1] = Widen(static_cast<uint16_t>(x >> 16), o.half);
      }
    }
  } else {
    const Operand from(o.a_descriptor, o.half);
    for (int r = 0; r < kRows; ++r) {
      for (int k = 0; k < kDepth; ++k) a[r][k] = from.KMajor(p.warp * kRows + r, k);
    }
  }
  const Operand from(o.b_descriptor, o.half);
  std::vector<float> b(static_cast<size_t>(kDepth * o.n));
  for (int n = 0; n < o.n; ++n) {
    for (int k = 0; k < kDepth; ++k) {
      b[static_cast<size_t>(k * o.n + n)] = o.transposed ? from.NMajor(n, k) : from.KMajor(n, k);
    }
  }
  if (!o.add) std::fill(sums.at.begin(), sums.at.end(), 0.0f);
  for (int r = 0; r < kRows; ++r) {
    float* const row = sums.at.data() + r * o.n;
    for (int k = 0; k < kDepth; ++k) {
      const float* const column = b.data() + k * o.n;
      for (int n = 0; n < o.n; ++n) row[n] += a[r][k] * column[n];
    }
  }
}

void Run(Group* group) {
  if (group->done) return;
  group->done = true;
  for (const Product& p : group->products) Compute(p);
}

// Runs the queue's groups up to and including `last`.
void RunUpTo(const std::deque<std::shared_ptr<Group>>& groups, const Group* last) {
  for (const auto& group : groups) {
    Run(group.get());
    if (group.get() == last) return;
  }
}

// The sums that products under way already add to, or those in the lanes' registers, which nobody
// may read from here on.
std::shared_ptr<Sums> FindSums(const WarpQueue& queue, const WgmmaOperands* const* lanes) {
  const auto same = [&](const Product& p) { return p.sums->d[0] == lanes[0]->d; };
  for (const Product& p : queue.open) {
    if (same(p)) return p.sums;
  }
  for (const auto& group : queue.groups) {
    for (const Product& p : group->products) {
      if (same(p)) return p.sums;
    }
  }
  auto sums = std::make_shared<Sums>();
  sums->n = lanes[0]->n;
  sums->at.resize(static_cast<size_t>(kRows * sums->n));
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    sums->d[lane] = lanes[lane]->d;
    for (int j = 0; j < sums->n / 2; ++j) {
      const int at = RowOf(lane, j) * sums->n + ColumnOf(lane, j);
      sums->at[static_cast<size_t>(at)] = lanes[lane]->d[j];
      lanes[lane]->d[j] = std::numeric_limits<float>::quiet_NaN();
    }
  }
  return sums;
}

void WriteBack(const Sums& sums) {
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    for (int j = 0; j < sums.n / 2; ++j) {
      sums.d[lane][j] = sums.at[static_cast<size_t>(RowOf(lane, j) * sums.n + ColumnOf(lane, j))];
    }
  }
}

}  // namespace

void IssueWgmma(const WgmmaOperands& operands, Where where) {
  Cta& cta = Cta::Current();
  CheckDescriptor(operands.b_descriptor, where);
  if (operands.a == nullptr) CheckDescriptor(operands.a_descriptor, where);
  int unused = 0;
  cta.Meet("wgmma", where, kAll, true, &operands, &unused,
           [&](const WgmmaOperands* const* lanes, int* const*, uint32_t) {
             WarpQueue& queue = QueueOfWarp();
             Product p;
             p.operands = *lanes[0];
             for (int lane = 0; lane < kWarpLanes; ++lane) {
               p.a[lane] = lanes[lane]->a;
               if (lanes[lane]->b_descriptor != lanes[0]->b_descriptor ||
                   lanes[lane]->a_descriptor != lanes[0]->a_descriptor) {
                 cta.Fault("wgmma: the lanes' descriptors differ", where);
               }
             }
             p.warp = cta.lane().number / kWarpLanes % 4;
             p.sums = FindSums(queue, lanes);
             ++p.sums->products;
             p.where = where;
             queue.open.push_back(std::move(p));
           });
}

void CommitWgmma(Where where) {
  Cta& cta = Cta::Current();
  int in = 0, out = 0;
  cta.Meet("wgmma.commit", where, kAll, true, &in, &out,
           [&](const int* const*, int* const*, uint32_t) {
             WarpQueue& queue = QueueOfWarp();
             const auto group = std::make_shared<Group>();
             group->products = std::move(queue.open);
             queue.open.clear();
             queue.groups.push_back(group);
             const uint32_t when = cta.random().Below(3);
             if (when == 0) RunUpTo(queue.groups, group.get());
             if (when == 1)
               cta.Defer([groups = queue.groups, group] { RunUpTo(groups, group.get()); });
           });
}

void WaitWgmma(int pending, Where where) {
  Cta& cta = Cta::Current();
  // Sometimes the products take their time, and whoever was told too early that their operands may
  // be overwritten does so.
  if (cta.lane_of_warp() == 0 && cta.random().OneIn(8)) {
    bool over = false;
    cta.Defer([&over] { over = true; });
    const auto done = [&over] { return over; };
    cta.WaitUntil("wgmma.wait", where, done);
  }
  int in = 0, out = 0;
  cta.Meet("wgmma.wait", where, kAll, true, &in, &out,
           [&](const int* const*, int* const*, uint32_t) {
             WarpQueue& queue = QueueOfWarp();
             while (static_cast<int>(queue.groups.size()) > pending) {
               const std::shared_ptr<Group> group = queue.groups.front();
               Run(group.get());
               queue.groups.pop_front();
               for (const Product& p : group->products) {
                 if (--p.sums->products == 0) WriteBack(*p.sums);
               }
             }
           });
}

}  // namespace octavo::emulator

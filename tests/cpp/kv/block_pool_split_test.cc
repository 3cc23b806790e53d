// Groups of unequal blocks in one pool, against a model that searches everything.
#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "doctest/doctest.h"
#include "kv/block_pool.h"
#include "kv/take.h"

namespace octavo::kv {
namespace {

using enum EvictionClass;

// The same pool as plain records. Stamps stand for list positions: older goes first, but of what
// has no content the latest.
struct NaivePool {
  struct Block {
    int refs = 0;
    int cls = 0;
    int64_t stamp = 0;
  };
  struct Parent {
    int owner = -1;
    int64_t stamp = 0;
    std::vector<Block> blocks;
  };

  NaivePool(int32_t n, std::vector<int32_t> s) : split(std::move(s)), parents(n) {
    for (size_t p = parents.size(); p-- > 0;) parents[p].stamp = ++clock;
  }

  static bool Used(const Parent& p) {
    return std::any_of(p.blocks.begin(), p.blocks.end(), [](const Block& b) { return b.refs > 0; });
  }
  static int Class(const Parent& p) {
    int c = 0;
    for (const Block& b : p.blocks) c = std::max(c, b.cls);
    return c;
  }
  std::vector<int32_t> Idle(int cls) const {
    std::vector<int32_t> list;
    for (int32_t p = 1; p < int32_t(parents.size()); ++p) {
      if (!Used(parents[p]) && Class(parents[p]) == cls) list.push_back(p);
    }
    std::sort(list.begin(), list.end(), [&](int32_t a, int32_t b) {
      return (parents[a].stamp < parents[b].stamp) == (cls > 0);
    });
    return list;
  }
  int32_t NumIdle() const {
    int32_t count = 0;
    for (int32_t p = 1; p < int32_t(parents.size()); ++p) count += !Used(parents[p]);
    return count;
  }
  int32_t OwnFree(int g) const {
    int32_t count = 0;
    for (const Parent& p : parents) {
      if (p.owner != g || !Used(p)) continue;
      for (const Block& b : p.blocks) count += b.refs == 0;
    }
    return count;
  }
  int32_t ParentsFor(const BlockNeed& need) const {
    int32_t count = 0;
    for (int g = 0; g < int(split.size()); ++g) {
      const int32_t beyond = std::max(0, need.of[g] - OwnFree(g));
      count += (beyond + split[g] - 1) / split[g];
    }
    return count;
  }
  struct Place {
    int32_t parent = -1;
    int offset = 0;
    bool operator==(const Place&) const = default;
  };
  // Where a block of `g` may come from: any of these.
  std::vector<Place> Candidates(int g, const BlockNeed& rest) const {
    std::vector<Place> empty;
    std::vector<Place> cached[kEvictionClasses];
    for (int32_t p = 1; p < int32_t(parents.size()); ++p) {
      if (parents[p].owner != g || !Used(parents[p])) continue;
      for (int i = 0; i < split[g]; ++i) {
        const Block& b = parents[p].blocks[i];
        if (b.refs == 0) (b.cls == 0 ? empty : cached[b.cls]).push_back({p, i});
      }
    }
    if (!empty.empty()) return empty;
    int c = 1;
    while (c < kEvictionClasses && cached[c].empty()) ++c;
    if (c == kEvictionClasses) return {{NextParent(), 0}};
    const auto& own = cached[c];
    if (ParentsFor(rest) < NumIdle()) {
      const int next = Class(parents[NextParent()]);
      const bool kept = c > int(kProven) && c > next;
      if (next == 0 || kept) return {{NextParent(), 0}};
    }
    return {*std::min_element(own.begin(), own.end(), [&](const Place& a, const Place& b) {
      return parents[a.parent].blocks[a.offset].stamp < parents[b.parent].blocks[b.offset].stamp;
    })};
  }
  int32_t NextParent() const {
    int c = 0;
    while (Idle(c).empty()) ++c;
    if (c != int(kProbationary)) return Idle(c).front();
    const double all = NumIdle();
    const int32_t probationary = Idle(c).front();
    if (all - double(Idle(c).size()) <= BlockPool::kProvenShare * all) return probationary;
    do ++c;
    while (Idle(c).empty());
    return Idle(c).front();
  }
  // Takes that place; how many cached blocks lose their content.
  int Commit(int g, const Place& at) {
    Parent& p = parents[at.parent];
    int lost = 0;
    if (!Used(p)) {
      for (const Block& b : p.blocks) lost += b.cls > 0;
      p.owner = g;
      p.blocks.assign(split[g], {});
    }
    Block& b = p.blocks[at.offset];
    lost += b.cls > 0;
    b = {1, 0, ++clock};
    return lost;
  }
  void Ref(const Place& at) {
    Parent& p = parents[at.parent];
    const bool was_idle = !Used(p);
    p.blocks[at.offset].refs++;
    if (!was_idle) return;
    for (Block& b : p.blocks) {
      if (b.refs == 0) b.stamp = ++clock;
    }
  }
  void Unref(const Place& at) {
    Parent& p = parents[at.parent];
    Block& b = p.blocks[at.offset];
    if (--b.refs > 0) return;
    b.stamp = ++clock;
    if (!Used(p)) p.stamp = ++clock;
  }
  void SetClass(const Place& at, int c) {
    Block& b = parents[at.parent].blocks[at.offset];
    if (b.cls == c) return;
    if (b.refs > 0) {
      b.cls = c;
      return;
    }
    Ref(at);
    b.cls = c;
    Unref(at);
  }

  std::vector<int32_t> split;
  std::vector<Parent> parents;
  int64_t clock = 0;
};

class Twins {
 public:
  Twins(uint32_t seed, std::vector<int32_t> split)
      : random_(seed),
        split_(split),
        size_(2 + int32_t(random_() % 8)),
        pool_(size_, split),
        naive_(size_, split) {
    for (int32_t s : split) widest_ = std::lcm(widest_, s);
  }

  void Turn() {
    switch (random_() % 5) {
      case 0:
      case 1:
        TakeSome();
        break;
      case 2:
        if (Pick(false)) {
          pool_.Ref(Id(at_));
          naive_.Ref(at_);
        }
        break;
      case 3:
        if (Pick(true)) {
          pool_.Unref(Id(at_));
          naive_.Unref(at_);
        }
        break;
      default:
        if (Pick(false)) {
          const int c = int(kSomeClasses[random_() % std::size(kSomeClasses)]);
          pool_.SetClass(Id(at_), EvictionClass(c));
          naive_.SetClass(at_, c);
        }
    }
    Compare();
  }

 private:
  BlockId Id(const NaivePool::Place& at) const {
    return BlockId{at.parent * widest_ +
                   at.offset * (widest_ / split_[naive_.parents[at.parent].owner])};
  }
  NaivePool::Place PlaceOf(BlockId b, int g) const {
    return {Index(b) / widest_, Index(b) % widest_ / (widest_ / split_[g])};
  }
  // A block in use, or (unless `used`) one with content.
  bool Pick(bool used) {
    std::vector<NaivePool::Place> all;
    for (int32_t p = 1; p < size_; ++p) {
      const auto& blocks = naive_.parents[p].blocks;
      for (int i = 0; i < int(blocks.size()); ++i) {
        if (blocks[i].refs > 0 || (!used && blocks[i].cls > 0)) all.push_back({p, i});
      }
    }
    if (all.empty()) return false;
    at_ = all[random_() % all.size()];
    return true;
  }
  // A transaction of several groups in a random order: what fits can be taken to the last block.
  void TakeSome() {
    BlockNeed need;
    for (size_t g = 0; g < split_.size(); ++g) need.of[g] = int32_t(random_() % 4);
    REQUIRE(pool_.Fits(need) == (naive_.ParentsFor(need) <= naive_.NumIdle()));
    if (!pool_.Fits(need)) return;
    while (need.total() > 0) {
      const int g = int(random_() % split_.size());
      if (need.of[g] == 0) continue;
      --need.of[g];
      const auto candidates = naive_.Candidates(g, need);
      RecordingSink sink;
      const BlockId b = pool_.Take(g, need, sink);
      const auto at = PlaceOf(b, g);
      REQUIRE(std::find(candidates.begin(), candidates.end(), at) != candidates.end());
      REQUIRE(int(sink.evicted.size()) == naive_.Commit(g, at));
      REQUIRE(Id(at) == b);
      REQUIRE(pool_.FromTable(pool_.TableId(b, g), g) == b);
      pool_.CheckInvariants();
      REQUIRE(pool_.Fits(need));
    }
  }
  void Compare() {
    pool_.CheckInvariants();
    for (int c = 0; c < kEvictionClasses; ++c) {
      REQUIRE(pool_.FreeParents(EvictionClass(c)) == naive_.Idle(c));
    }
    for (int g = 0; g < int(split_.size()); ++g) {
      REQUIRE(pool_.free_blocks(g) == naive_.OwnFree(g) + naive_.NumIdle() * split_[g]);
    }
    for (int32_t p = 1; p < size_; ++p) {
      const auto& blocks = naive_.parents[p].blocks;
      for (int i = 0; i < int(blocks.size()); ++i) {
        REQUIRE(pool_.refs(Id({p, i})) == blocks[i].refs);
        REQUIRE(pool_.eviction_class(Id({p, i})) == EvictionClass(blocks[i].cls));
      }
    }
  }

  std::mt19937 random_;
  std::vector<int32_t> split_;
  int32_t size_;
  int32_t widest_ = 1;
  BlockPool pool_;
  NaivePool naive_;
  NaivePool::Place at_;
};

TEST_CASE("a pool cut unequally equals one that searches, after every random operation") {
  const std::vector<std::vector<int32_t>> splits = {{1, 1},    {11, 2}, {1, 4}, {3, 5, 2},
                                                    {1, 2, 4}, {7},     {6, 4}, {64, 1}};
  for (const auto& split : splits) {
    for (uint32_t seed = 1; seed <= 10; ++seed) {
      CAPTURE(split[0]);
      CAPTURE(seed);
      Twins twins(seed, split);
      for (int step = 0; step < 300; ++step) twins.Turn();
    }
  }
}

TEST_CASE("a group fills the parents it has before it takes another") {
  const int32_t split[] = {4, 1};
  BlockPool pool(4, split);
  for (int i = 0; i < 4; ++i) CHECK(Index(Take(pool, 0)) == 4 + i);
  CHECK(pool.free_parents() == 2);
  CHECK(pool.free_blocks(0) == 8);
  CHECK(pool.free_blocks(1) == 2);
  CHECK(Index(Take(pool, 1)) == 8);
  CHECK(pool.TableId(BlockId{8}, 1) == 2);
}

TEST_CASE("a parent serves another group once its last block is let go") {
  const int32_t split[] = {2, 1};
  BlockPool pool(2, split);
  const BlockId a = Take(pool, 0);
  const BlockId b = Take(pool, 0);
  BlockNeed one;
  one.of[1] = 1;
  pool.SetClass(a, kProbationary);
  pool.Unref(a);
  CHECK_FALSE(pool.Fits(one));
  pool.Unref(b);
  REQUIRE(pool.Fits(one));
  RecordingSink sink;
  CHECK(Index(pool.Take(1, {}, sink)) == 2);
  CHECK(sink.evicted == std::vector<int32_t>{Index(a)});
}

}  // namespace
}  // namespace octavo::kv

// The parts of octavo._core below the scheduler: block pool, prefix chains and the KV manager.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "base/hash.h"
#include "core_module.h"
#include "kv/block_pool.h"
#include "kv/kv_manager.h"
#include "octavo/config.h"

namespace py = pybind11;

namespace octavo::bindings {
namespace {

using kv::BlockPool;
using kv::KvManager;

// A chain that owns its tokens, for callers without a request.
struct OwnedChain {
  std::vector<int32_t> tokens;
  std::vector<Hash128> hashes;
  Hash128 root;
  int32_t block_size;
  kv::PrefixChain view() const { return {tokens, hashes, root}; }
};

OwnedChain MakeChain(std::vector<int32_t> tokens, int block_size, const std::string& salt,
                     uint64_t seed) {
  if (block_size < 1 || block_size > kMaxBlockSize) {
    throw py::value_error("block_size=" + std::to_string(block_size) +
                          " is out of range: give 1 to 256");
  }
  const ChainHasher hasher(seed);
  OwnedChain chain{std::move(tokens), {}, hasher.Root(salt), block_size};
  Hash128 parent = chain.root;
  const std::span<const int32_t> all(chain.tokens);
  for (size_t at = 0; at + block_size <= all.size(); at += block_size) {
    parent = hasher.Next(parent, all.subspan(at, block_size));
    chain.hashes.push_back(parent);
  }
  return chain;
}

BlockId CheckedBlock(const BlockPool& pool, int32_t block) {
  if (block < 1 || block >= pool.num_parents()) {
    throw py::value_error("block=" + std::to_string(block) +
                          " is out of range: the pool has blocks 1 to " +
                          std::to_string(pool.num_parents() - 1));
  }
  return BlockId{block};
}

void BindPool(py::module_& m) {
  py::class_<BlockPool>(
      m, "BlockPool",
      "Reference counts and free lists of a pool of blocks; block 0 is the null block.")
      .def(py::init([](int32_t num_blocks) {
             if (num_blocks < 2) throw py::value_error("num_blocks must be at least 2");
             return BlockPool(num_blocks);
           }),
           py::arg("num_blocks"))
      .def_property_readonly("num_blocks", &BlockPool::num_parents)
      .def_property_readonly("free_count", [](const BlockPool& p) { return p.free_parents(); })
      .def("take",
           [](BlockPool& p) {
             if (p.free_parents() == 0)
               Throw(Status::ResourceExhausted("the pool has no free block"));
             struct : kv::EvictionSink {
               void OnEvict(BlockId) override {}
             } nobody;
             return Index(p.Take(0, {}, nobody));
           })
      .def(
          "ref", [](BlockPool& p, int32_t b) { p.Ref(CheckedBlock(p, b)); }, py::arg("block"))
      .def(
          "unref",
          [](BlockPool& p, int32_t b) {
            if (p.refs(CheckedBlock(p, b)) == 0) {
              throw py::value_error("block=" + std::to_string(b) + " is not held by anybody");
            }
            p.Unref(BlockId{b});
          },
          py::arg("block"))
      .def(
          "refs", [](const BlockPool& p, int32_t b) { return p.refs(CheckedBlock(p, b)); },
          py::arg("block"));
}

RowSlot CheckedSlot(const KvManager& kv, int32_t slot) {
  if (slot < 0 || slot >= kv.num_slots()) {
    throw py::value_error("slot=" + std::to_string(slot) + " is out of range: there are " +
                          std::to_string(kv.num_slots()));
  }
  return RowSlot{slot};
}

KvManager MakeManager(int num_blocks, int block_size, int num_slots, int max_tokens_per_slot,
                      bool enable_prefix_caching) {
  if (num_blocks < 2 || block_size < 1 || block_size > kMaxBlockSize || num_slots < 1 ||
      max_tokens_per_slot < 1) {
    throw py::value_error(
        "KVManager needs num_blocks >= 2, block_size from 1 to 256, num_slots >= 1 and "
        "max_tokens_per_slot >= 1");
  }
  kv::KvConfig config;
  config.num_blocks = num_blocks;
  config.block_size = block_size;
  config.num_slots = num_slots;
  config.max_tokens_per_slot = max_tokens_per_slot;
  config.enable_prefix_caching = enable_prefix_caching;
  return KvManager(config);
}

void CheckFits(const KvManager& kv, int32_t tokens) {
  if (tokens < 0 || tokens > kv.max_tokens_per_slot()) {
    throw py::value_error("tokens=" + std::to_string(tokens) +
                          " is out of range: a slot holds at most " +
                          std::to_string(kv.max_tokens_per_slot()));
  }
}

void CheckChain(const KvManager& kv, const OwnedChain& chain) {
  if (chain.block_size != kv.tables()[0].block_size) {
    throw py::value_error("the chain has block_size=" + std::to_string(chain.block_size) +
                          ", the manager " + std::to_string(kv.tables()[0].block_size));
  }
}

int32_t Match(KvManager& kv, const OwnedChain& chain, int32_t max_tokens) {
  CheckChain(kv, chain);
  if (max_tokens < 0) {
    throw py::value_error("max_tokens=" + std::to_string(max_tokens) + " is negative");
  }
  return kv.Match(chain.view(), std::min(max_tokens, kv.max_tokens_per_slot())).tokens;
}

bool Admit(KvManager& kv, int32_t slot, const OwnedChain& chain, int32_t tokens,
           int32_t keep_free) {
  CheckFits(kv, tokens);
  CheckChain(kv, chain);
  if (kv.length(CheckedSlot(kv, slot)) != 0) {
    throw py::value_error("slot=" + std::to_string(slot) + " is in use: release it first");
  }
  const int32_t cap = std::min(tokens, static_cast<int32_t>(chain.tokens.size())) - 1;
  return kv.Admit(RowSlot{slot}, kv.Match(chain.view(), std::max(0, cap)), tokens, {}, keep_free);
}

void Publish(KvManager& kv, int32_t slot, const OwnedChain& chain, int32_t tokens) {
  CheckChain(kv, chain);
  const int32_t held = kv.length(CheckedSlot(kv, slot)) * kv.tables()[0].block_size;
  if (tokens < 0 || tokens > held || tokens > static_cast<int32_t>(chain.tokens.size())) {
    throw py::value_error("tokens=" + std::to_string(tokens) +
                          " is more than the slot or the chain holds");
  }
  kv.Publish(RowSlot{slot}, chain.view(), tokens);
}

void BindManager(py::module_& m) {
  py::class_<OwnedChain>(m, "PrefixChain", "Token ids with the chain hashes of their full blocks.")
      .def(py::init(&MakeChain), py::arg("token_ids"), py::arg("block_size"),
           py::arg("cache_salt") = "", py::arg("hash_seed") = 1)
      .def_property_readonly("num_blocks", [](const OwnedChain& c) { return c.hashes.size(); });
  py::class_<KvManager>(
      m, "KVManager",
      "Block tables of running requests over one pool. admit and grow succeed whole or "
      "change nothing.")
      .def(py::init(&MakeManager), py::kw_only(), py::arg("num_blocks"), py::arg("block_size"),
           py::arg("num_slots"), py::arg("max_tokens_per_slot"),
           py::arg("enable_prefix_caching") = true)
      .def("match", &Match, py::arg("chain"), py::arg("max_tokens"),
           "How many leading tokens are cached.")
      .def("admit", &Admit, py::arg("slot"), py::arg("chain"), py::arg("tokens"),
           py::arg("keep_free") = 0)
      .def(
          "grow",
          [](KvManager& kv, int32_t slot, int32_t tokens) {
            CheckFits(kv, tokens);
            return kv.Grow(CheckedSlot(kv, slot), tokens);
          },
          py::arg("slot"), py::arg("tokens"))
      .def("publish", &Publish, py::arg("slot"), py::arg("chain"), py::arg("tokens"))
      .def(
          "release",
          [](KvManager& kv, int32_t slot) {
            kv.Release(CheckedSlot(kv, slot));
            kv.ClearRow(RowSlot{slot});
          },
          py::arg("slot"))
      .def(
          "blocks",
          [](const KvManager& kv, int32_t slot) {
            const auto blocks = kv.blocks(CheckedSlot(kv, slot));
            return std::vector<int32_t>(blocks.begin(), blocks.end());
          },
          py::arg("slot"))
      .def("reset", &KvManager::Reset)
      .def("check_invariants", &KvManager::CheckInvariants)
      .def_property_readonly("free_blocks", &KvManager::free_blocks)
      .def_property_readonly("cached_blocks", [](const KvManager& kv) { return kv.map().size(); });
}

}  // namespace

void BindKv(py::module_& m) {
  BindPool(m);
  BindManager(m);
}

}  // namespace octavo::bindings

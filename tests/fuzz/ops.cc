// Every op over hostile tensors: the first byte picks the op, the second the instruction set.
#include "octavo/ops.h"

#include <algorithm>
#include <optional>

#include "base/check.h"
#include "fuzz/bytes.h"
#include "fuzz/targets.h"
#include "fuzz/tensors.h"
#include "octavo/ops_latent.h"
#include "octavo/ops_moe.h"
#include "octavo/ops_state.h"
#include "octavo/ops_tables.h"

namespace octavo::fuzz {
namespace {

// One call: what it is made of, and the extents that tensors share.
struct Call {
  explicit Call(Bytes* b) : bytes(*b), tensors(b) {
    tensors.ChooseDType();
    tokens = bytes.Below(6);
    rows = bytes.Below(4);
    slots = bytes.Between(1, 4);
    blocks = bytes.Between(1, 6);
    block_size = bytes.OneIn(16) ? bytes.Number() : 1 << bytes.Below(4);
    extent = std::clamp<int64_t>(block_size, 1, 8);
    heads = bytes.Between(1, 3);
    dim = 8 * bytes.Between(1, 3);
  }

  std::optional<TensorView> Maybe(const TensorView& view) {
    return bytes.OneIn(2) ? std::nullopt : std::optional(view);
  }
  TensorView Position(int64_t limit) { return tensors.Ints({tokens}, limit); }
  TensorView RowSlot() { return tensors.Ints({rows}, slots); }
  TensorView QueryStart() { return tensors.Starts(rows, tokens); }
  TensorView SeqLen() { return tensors.Ints({rows}, blocks * extent + 1); }
  TensorView BlockTable() { return tensors.Ints({slots, blocks}, blocks); }
  TensorView Cache() { return tensors.Floats({blocks, 2, heads, extent, dim}); }
  TensorView CosSin(int64_t positions) { return tensors.F32({positions, dim}); }
  TensorView Rows(int64_t width) { return tensors.Floats({tokens, width}); }
  TensorView Heads(int64_t count) { return tensors.Floats({tokens, count, dim}); }

  Bytes& bytes;
  Tensors tensors;
  int64_t tokens, rows, slots, blocks, block_size, extent, heads, dim;
};

// A column of token ids that an op wrote.
void CheckTokens(const TensorView& token, int64_t vocab) {
  for (int64_t s = 0; s < token.shape[0]; ++s) {
    const int32_t id = token.ptr<int32_t>()[s];
    OCTAVO_CHECK(id >= -1 && id < vocab, "an op chose a token that does not exist");
  }
}

Status RmsNorm(Call& c) {
  const bool in_heads = c.bytes.OneIn(3);
  const TensorView x = in_heads ? c.Heads(c.heads) : c.Rows(c.dim);
  const TensorView out = c.bytes.OneIn(3) ? x : in_heads ? c.Heads(c.heads) : c.Rows(c.dim);
  return cpu::RmsNorm({out, x, c.tensors.Floats({c.dim}), c.bytes.Float(), c.bytes.Float()});
}

Status AddRmsNorm(Call& c) {
  const TensorView x = c.Rows(c.dim);
  const TensorView out = c.bytes.OneIn(3) ? x : c.Rows(c.dim);
  return cpu::AddRmsNorm(
      {out, x, c.Rows(c.dim), c.tensors.Floats({c.dim}), c.bytes.Float(), c.bytes.Float()});
}

Status Rope(Call& c) {
  const int64_t positions = c.bytes.Between(1, 20);
  return cpu::Rope({c.Heads(c.heads * 2), c.Heads(c.heads), c.Position(positions),
                    c.CosSin(positions), c.bytes.OneIn(2)});
}

Status SlotMapping(Call& c) {
  return cpu::SlotMapping({c.tensors.Longs(c.tokens, 1), c.Position(c.blocks * c.extent),
                           c.QueryStart(), c.RowSlot(), c.BlockTable(), c.block_size});
}

Status CacheWrite(Call& c) {
  return cpu::CacheWrite({c.Heads(c.heads), c.Heads(c.heads), c.Cache(),
                          c.tensors.Longs(c.tokens, c.blocks * c.extent)});
}

Status NormRopeCache(Call& c) {
  const int64_t positions = c.bytes.Between(1, 20);
  NormRopeCacheArgs a{c.Heads(c.heads * 2),
                      c.Heads(c.heads),
                      c.Heads(c.heads),
                      c.Position(positions),
                      c.CosSin(positions),
                      c.Cache(),
                      c.tensors.Longs(c.tokens, c.blocks * c.extent)};
  if (c.bytes.OneIn(2)) {
    a.q_norm = c.tensors.Floats({c.dim});
    a.k_norm = c.Maybe(c.tensors.Floats({c.dim}));
  }
  a.eps = c.bytes.Float();
  a.interleaved = c.bytes.OneIn(2);
  return cpu::NormRopeCache(a);
}

PagedAttentionArgs Attention(Call& c) {
  PagedAttentionArgs a;
  const int64_t queries = c.heads * c.bytes.Between(1, 3);
  a.q = c.Heads(queries);
  a.out = c.Heads(queries);
  a.cache = c.Cache();
  a.block_table = c.BlockTable();
  a.row_slot = c.RowSlot();
  a.query_start = c.QueryStart();
  a.seq_len = c.SeqLen();
  a.scale = c.bytes.Float();
  if (c.bytes.OneIn(2)) a.window = c.bytes.Number();
  if (c.bytes.OneIn(3)) a.soft_cap = c.bytes.Float();
  if (c.bytes.OneIn(3)) a.sinks = c.tensors.F32({queries});
  a.chunked = c.bytes.OneIn(3);
  return a;
}

Status PagedAttention(Call& c) { return cpu::PagedAttention(Attention(c)); }

Status NormRopeAttention(Call& c) {
  const int64_t positions = c.bytes.Between(1, 20);
  NormRopeAttentionArgs a{Attention(c),        c.Heads(c.heads),
                          c.Heads(c.heads),    c.Position(positions),
                          c.CosSin(positions), c.tensors.Longs(c.tokens, c.blocks * c.extent)};
  if (c.bytes.OneIn(2)) {
    a.q_norm = c.tensors.Floats({c.dim});
    a.k_norm = c.Maybe(c.tensors.Floats({c.dim}));
  }
  a.eps = c.bytes.Float();
  a.interleaved = c.bytes.OneIn(2);
  return cpu::NormRopeAttention(a);
}

Status GatedActivation(Call& c) {
  const GatedActivationArgs a{c.Rows(c.dim), c.Rows(2 * c.dim)};
  return c.bytes.OneIn(2) ? cpu::SiluMul(a) : cpu::GeluTanhMul(a);
}

Status ClampedSwiglu(Call& c) {
  return cpu::ClampedSwiglu({c.Rows(c.dim), c.Rows(2 * c.dim), c.bytes.Float(), c.bytes.Float()});
}

Status Linear(Call& c) {
  const int64_t width = c.bytes.Below(20);
  constexpr Gate kGates[] = {Gate::kNone, Gate::kSilu, Gate::kGeluTanh};
  const Gate gate = kGates[c.bytes.Below(3)];
  const int64_t rows = gate == Gate::kNone ? width : 2 * width;
  return cpu::Linear({c.Rows(width), c.Rows(c.dim), c.tensors.Floats({rows, c.dim}),
                      c.Maybe(c.tensors.Floats({rows})), c.bytes.OneIn(2),
                      c.Maybe(c.tensors.Floats({c.dim})), c.bytes.Float(), c.bytes.Float(), gate,
                      c.bytes.OneIn(2)});
}

Status FillTokens(Call& c) {
  return cpu::FillTokens({c.tensors.Ints({c.tokens}, 50, -1), c.QueryStart(), c.RowSlot(),
                          c.tensors.Ints({c.slots}, 50, -1)});
}

Status KeepTokens(Call& c) {
  const int64_t samples = c.bytes.Below(4);
  return cpu::KeepTokens({c.tensors.Ints({c.slots}, 50), c.tensors.Ints({samples}, 50),
                          c.tensors.Ints({samples}, c.rows), c.RowSlot()});
}

Status Argmax(Call& c) {
  const int64_t vocab = c.bytes.Below(40);
  const ArgmaxArgs a{c.tensors.Ints({c.tokens}, 1), c.tensors.F32({c.tokens, vocab})};
  const Status s = cpu::Argmax(a);
  if (s.ok()) CheckTokens(a.token, a.logits.shape[1]);
  return s;
}

// Histories and masks are addresses, and what lies there is the caller's word: true here.
void PointAtMemory(Call& c, int64_t vocab, SampleArgs* a) {
  constexpr int64_t kBitsPerWord = 32;
  // What validation refuses is left as it is.
  for (const TensorView* v : {&a->history, &a->history_len, &a->mask}) {
    if (v->data == nullptr || v->rank != 1 || !v->last_dim_contiguous()) return;
  }
  if (a->history_len.dtype != DType::kI32) return;
  // Logits of a huge vocabulary have no rows.
  const int64_t most = std::max(vocab, a->logits.shape[0] > 0 ? a->logits.shape[1] : 0);
  const int64_t words = (most + kBitsPerWord - 1) / kBitsPerWord;
  for (int64_t s = 0; s < a->history.shape[0] && s < a->history_len.shape[0]; ++s) {
    int32_t* length = &a->history_len.ptr<int32_t>()[s];
    *length = std::min(*length, 64);
    const int64_t count = std::max(0, *length);
    auto* history = static_cast<int32_t*>(c.tensors.Memory(size_t(count) * sizeof(int32_t)));
    for (int64_t i = 0; i < count; ++i) history[i] = c.bytes.IntNear(-1, 40);
    a->history.ptr<uint64_t>()[s] = reinterpret_cast<uint64_t>(history);
  }
  for (int64_t s = 0; s < a->mask.shape[0]; ++s) {
    a->mask.ptr<uint64_t>()[s] = 0;
    if (!c.bytes.OneIn(3)) continue;
    auto* mask = static_cast<uint32_t*>(c.tensors.Memory(size_t(words) * sizeof(uint32_t)));
    for (int64_t w = 0; w < words; ++w) mask[w] = uint32_t(c.bytes.Word(4));
    a->mask.ptr<uint64_t>()[s] = reinterpret_cast<uint64_t>(mask);
  }
}

void FillNumbers(Call& c, const TensorView& v) {
  for (int64_t i = 0; v.data != nullptr && v.dtype == DType::kF32 && i < v.shape[0]; ++i) {
    if (c.bytes.OneIn(2)) v.ptr<float>()[i * (v.rank == 1 ? v.stride[0] : 0)] = c.bytes.Float();
  }
}

Status Sample(Call& c) {
  const int64_t n = c.bytes.Below(4), vocab = c.bytes.Between(1, 60), entries = c.bytes.Below(6);
  Tensors& t = c.tensors;
  SampleArgs a;
  a.token = t.Ints({n}, 1);
  a.logits = t.F32({n, vocab});
  a.top_k = t.Ints({n}, vocab + 2, -1);
  a.temperature = t.F32({n});
  a.top_p = t.F32({n});
  a.min_p = t.F32({n});
  a.presence = t.F32({n});
  a.frequency = t.F32({n});
  a.repetition = t.F32({n});
  for (const TensorView* v :
       {&a.temperature, &a.top_p, &a.min_p, &a.presence, &a.frequency, &a.repetition}) {
    FillNumbers(c, *v);
  }
  a.seed = t.Make(DType::kU64, {n});
  a.sample_index = t.Longs(n, 20);
  a.bias_start = t.Starts(n, entries);
  a.bias_token = t.Ints({entries}, vocab);
  a.bias_value = t.F32({entries});
  FillNumbers(c, a.bias_value);
  a.history = t.Make(DType::kU64, {n});
  a.history_len = t.Ints({n}, 30);
  a.prompt_len = t.Ints({n}, 10);
  a.mask = t.Make(DType::kU64, {n});
  // No dtype but this holds an address.
  if (a.history.dtype != DType::kU64 || a.mask.dtype != DType::kU64) return cpu::Sample(a);
  PointAtMemory(c, vocab, &a);
  const Status s = cpu::Sample(a);
  if (s.ok()) CheckTokens(a.token, a.logits.shape[1]);
  return s;
}

Status Logprobs(Call& c) {
  const int64_t vocab = c.bytes.Between(1, 40);
  const int64_t k = c.bytes.OneIn(8) ? c.bytes.Number() : c.bytes.Below(5);
  const int64_t columns = std::clamp<int64_t>(k, 0, 100) + 1;
  const LogprobsArgs a{c.tensors.Ints({c.tokens, columns}, 1), c.tensors.F32({c.tokens, columns}),
                       c.tensors.Ints({c.tokens}, 1),          c.tensors.F32({c.tokens, vocab}),
                       c.tensors.Ints({c.tokens}, vocab, -1),  k};
  return cpu::Logprobs(a);
}

Status MoeRoute(Call& c) {
  const int64_t experts = c.bytes.Below(9), k = c.bytes.Below(5);
  MoeRouteArgs a{c.tensors.Ints({c.tokens, k}, 1), c.tensors.F32({c.tokens, k}),
                 c.tensors.F32({c.tokens, experts}), c.bytes.OneIn(2), c.bytes.OneIn(2)};
  // An input that ends here chooses freely.
  if (!c.bytes.OneIn(2)) return cpu::MoeRoute(a);
  a.bias = c.Maybe(c.tensors.F32({experts}));
  a.groups = c.bytes.OneIn(8) ? c.bytes.Number() : 1 << c.bytes.Below(3);
  a.top_groups = c.bytes.OneIn(8) ? c.bytes.Number() : c.bytes.Below(4);
  a.group_best = c.bytes.OneIn(8) ? c.bytes.Number() : c.bytes.Below(4);
  a.scale = c.bytes.Float();
  return cpu::MoeRoute(a);
}

Status MoeGroup(Call& c) {
  const int64_t experts = c.bytes.Below(9), k = c.bytes.Below(5);
  return cpu::MoeGroup({c.tensors.Ints({c.tokens, k}, 1), c.tensors.Ints({c.tokens * k}, 1),
                        c.tensors.Ints({experts + 1}, 1), c.tensors.Ints({c.tokens, k}, experts)});
}

Status GroupedLinear(Call& c) {
  const int64_t experts = c.bytes.Between(1, 5), width = c.bytes.Below(20);
  return cpu::GroupedLinear(
      {c.Rows(width), c.Rows(c.dim), c.tensors.Floats({experts, width, c.dim}),
       c.tensors.Starts(experts, c.tokens), c.Maybe(c.tensors.Floats({experts, width}))});
}

Status MoeCombine(Call& c) {
  const int64_t n = c.bytes.Below(5), k = c.bytes.Below(4);
  return cpu::MoeCombine({c.tensors.Floats({n, c.dim}), c.Rows(c.dim),
                          c.tensors.Ints({n, k}, c.tokens), c.tensors.F32({n, k})});
}

Status StateMapping(Call& c) {
  return cpu::StateMapping({c.tensors.Ints({c.rows}, 1), c.tensors.Ints({c.rows}, 1),
                            c.QueryStart(), c.RowSlot(), c.SeqLen(), c.BlockTable(), c.block_size});
}

Status CausalConv1d(Call& c) {
  const int64_t taps = c.bytes.Between(1, 9);
  return cpu::CausalConv1d({c.Rows(c.dim), c.Rows(c.dim), c.tensors.Floats({c.dim, taps}),
                            c.Maybe(c.tensors.Floats({c.dim})),
                            c.tensors.Floats({c.blocks, taps - 1, c.dim}), c.QueryStart(),
                            c.tensors.Ints({c.rows}, c.blocks, -1),
                            c.tensors.Ints({c.rows}, c.blocks, -1)});
}

Status SsmScan(Call& c) {
  const int64_t groups = c.bytes.Between(1, 2), size = c.bytes.Below(20);
  const int64_t heads = groups * c.heads;
  Tensors& t = c.tensors;
  return cpu::SsmScan({c.Heads(heads), c.Heads(heads), t.Floats({c.tokens, heads}),
                       t.Floats({c.tokens, groups, size}), t.Floats({c.tokens, groups, size}),
                       t.Floats({heads}), t.Floats({heads}), t.Floats({heads}),
                       t.F32({c.blocks, heads, size, c.dim}), c.QueryStart(),
                       t.Ints({c.rows}, c.blocks, -1), t.Ints({c.rows}, c.blocks, -1)});
}

Status GatedRmsNorm(Call& c) {
  const TensorView x = c.Rows(c.dim);
  const int64_t groups = c.bytes.OneIn(8) ? c.bytes.Number() : 1 << c.bytes.Below(4);
  return cpu::GatedRmsNorm({c.bytes.OneIn(3) ? x : c.Rows(c.dim), x, c.Rows(c.dim),
                            c.tensors.Floats({c.dim}), groups, c.bytes.Float()});
}

Status FetchBlocks(Call& c) {
  FetchBlocksArgs a;
  a.table = c.BlockTable();
  a.row_slot = c.RowSlot();
  a.seq_len = c.SeqLen();
  a.source_slots = c.bytes.OneIn(16) ? -1 : c.bytes.Below(5);
  a.source_stride = c.bytes.OneIn(16) ? -1 : c.bytes.Below(9);
  a.block_size = c.block_size;
  const int64_t entries = std::max<int64_t>(0, a.source_slots * a.source_stride);
  a.source = reinterpret_cast<int64_t>(c.tensors.Memory(size_t(entries) * sizeof(int32_t)));
  return cpu::FetchBlocks(a);
}

Status CopyRuns(Call& c) {
  CopyRunsArgs a;
  a.pool = c.tensors.Make(DType::kU8, {c.tokens * c.dim});
  a.memory = c.tensors.Make(DType::kU8, {c.slots * c.dim});
  a.runs = c.tensors.Longs({c.rows, 3}, c.dim);
  a.to_pool = c.bytes.OneIn(2);
  return cpu::CopyRuns(a);
}

TensorView Latents(Call& c, int64_t width) { return c.tensors.Floats({c.blocks, c.extent, width}); }

Status LatentCacheWrite(Call& c) {
  const int64_t rope = 8 * c.bytes.Below(3);
  return cpu::LatentCacheWrite({c.Rows(c.dim), c.Rows(rope), Latents(c, c.dim + rope),
                                c.tensors.Longs(c.tokens, c.blocks * c.extent)});
}

Status LatentAttention(Call& c) {
  const int64_t width = c.dim + 8 * c.bytes.Below(3);
  LatentAttentionArgs a;
  a.out = c.Heads(c.heads);
  a.q = c.tensors.Floats({c.tokens, c.heads, width});
  a.cache = Latents(c, width);
  a.block_table = c.BlockTable();
  a.row_slot = c.RowSlot();
  a.query_start = c.QueryStart();
  a.seq_len = c.SeqLen();
  a.scale = c.bytes.Float();
  return cpu::LatentAttention(a);
}

using Op = Status (*)(Call&);
constexpr Op kOps[] = {
    RmsNorm,          AddRmsNorm,      Rope,          SlotMapping,      CacheWrite,   NormRopeCache,
    PagedAttention,   GatedActivation, ClampedSwiglu, Linear,           FillTokens,   KeepTokens,
    Argmax,           Sample,          Logprobs,      MoeRoute,         MoeGroup,     GroupedLinear,
    MoeCombine,       StateMapping,    CausalConv1d,  SsmScan,          GatedRmsNorm, FetchBlocks,
    LatentCacheWrite, LatentAttention, CopyRuns,      NormRopeAttention};
constexpr int32_t kNumOps = int32_t(sizeof(kOps) / sizeof(kOps[0]));

// A processor that lacks one runs the same input with the one in use.
void ChooseIsa(Bytes* bytes) {
  constexpr const char* kIsas[] = {"base", "avx2", "avx512"};
  (void)cpu::SetIsa(kIsas[bytes->Below(3)]).ok();
}

}  // namespace

void Ops(Input input) {
  // One thread: what a call does to memory does not depend on how many there are, and it is faster.
  const int threads = cpu::NumThreads();
  const std::string isa = cpu::Isa();
  cpu::SetNumThreads(1);
  Bytes bytes(input);
  const Op op = kOps[bytes.Below(kNumOps)];
  ChooseIsa(&bytes);
  Call call(&bytes);
  const Status s = op(call);
  OCTAVO_CHECK(s.ok() || (s.code() == StatusCode::kInvalidArgument && !s.message().empty()),
               "a refusal says why");
  cpu::SetNumThreads(threads);
  OCTAVO_CHECK(cpu::SetIsa(isa.c_str()).ok(), "the instruction set of before is there");
}

}  // namespace octavo::fuzz

// Host side of paged attention: checks, picks the kernels, enqueues them.
#include <string>

#include "attention/call.h"
#include "attention/fresh.h"
#include "attention/generic.h"
#include "base/ops_check.h"
#include "common/tensor_map.h"
#include "octavo/cuda_attention.h"

namespace octavo::cuda {
namespace {

constexpr const char* kOp = "paged_attention";
constexpr uintptr_t kPointerAlign = 16;  // bytes: what cp.async moves
constexpr uintptr_t kMemoryAlign = 256;  // bytes, of a plan's memory
constexpr int64_t kNoWindow = 1 << 30;   // no row is as long: such a window is none
constexpr int64_t kMaxLength = INT64_C(1) << 30;
constexpr int64_t kMaxGrid = INT64_C(1) << 31;

bool Aligned(const TensorView& v) {
  bool aligned = reinterpret_cast<uintptr_t>(v.data) % kPointerAlign == 0;
  for (int i = 0; i + 1 < v.rank; ++i) {
    const int64_t bytes = v.stride[i] * DTypeSize(v.dtype);
    aligned = aligned && (v.shape[i] <= 1 || bytes % int64_t{kPointerAlign} == 0);
  }
  return aligned;
}

// Whether the kernels on tensor cores take these shapes.
bool FitsTensorCores(const PagedAttentionArgs& a) {
  const int64_t head_dim = a.q.shape[2], group = a.q.shape[1] / a.cache.shape[2];
  const bool dtype = a.q.dtype == DType::kBF16 || a.q.dtype == DType::kF16;
  const bool dims = head_dim == 64 || head_dim == 128 || head_dim == 256;
  const bool blocks = a.cache.shape[3] % kTileTokens == 0 && a.cache.stride[3] == head_dim;
  return dtype && dims && blocks && group <= kMaxPrefillGroup && a.scale * a.k_scale > 0.0f &&
         a.row_slot.shape[0] <= kMaxPlanRows && Aligned(a.q) && Aligned(a.out) && Aligned(a.cache);
}

// The window as FirstSeen takes it.
int32_t WindowOf(const PagedAttentionArgs& a) {
  if (a.window >= kNoWindow) return 0;
  return static_cast<int32_t>(a.chunked ? -a.window : a.window);
}

LayerParams MakeLayer(const PagedAttentionArgs& a) {
  const int64_t size = DTypeSize(a.q.dtype), cached = DTypeSize(a.cache.dtype);
  const float scale = a.scale * a.k_scale;
  LayerParams p{};
  p.cache = a.cache.ptr<char>();
  p.block_stride = a.cache.stride[0] * cached;
  p.value_stride = a.cache.stride[1] * cached;
  p.head_stride = a.cache.stride[2] * cached;
  p.table = a.block_table.ptr<int32_t>();
  p.table_stride = a.block_table.stride[0];
  p.block_size = static_cast<int32_t>(a.cache.shape[3]);
  p.q = a.q.ptr<char>();
  p.q_token_stride = a.q.stride[0] * size;
  p.q_head_stride = a.q.stride[1] * size;
  p.out = a.out.ptr<char>();
  p.out_token_stride = a.out.stride[0] * size;
  p.out_head_stride = a.out.stride[1] * size;
  p.sinks = a.sinks.has_value() ? a.sinks->ptr<float>() : nullptr;
  p.kv_heads = static_cast<int32_t>(a.cache.shape[2]);
  p.group = static_cast<int32_t>(a.q.shape[1] / a.cache.shape[2]);
  p.window = WindowOf(a);
  p.value_scale = a.v_scale;
  p.scale_log2 = scale * kLog2E;
  if (a.soft_cap != 0.0f) {
    p.cap_log2 = a.soft_cap * kLog2E;
    p.cap_scale = scale / a.soft_cap;
  }
  return p;
}

// Whether decode rows may share what they have in common: beside the wgmma kernel, which computes
// it, and where every row sees all of its keys. With fixed splits a row's bits would depend on its
// neighbours.
bool SharesPrefixes(const AttentionOptions& options, const PlanShape& s, bool wgmma) {
  return options.share_prefixes && wgmma && s.prefill_tokens > 0 && s.window == 0 &&
         s.fixed_split == 0 && s.decode_queries > 0;
}

PlanShape MakeShape(const PagedAttentionArgs& a, const AttentionOptions& options,
                    PrefixSharing sharing, const AttentionCall& call) {
  PlanShape s;
  s.rows = static_cast<int32_t>(a.row_slot.shape[0]);
  s.kv_heads = static_cast<int32_t>(a.cache.shape[2]);
  s.group = static_cast<int32_t>(a.q.shape[1] / a.cache.shape[2]);
  s.window = WindowOf(a);
  s.decode_queries = static_cast<int32_t>(options.decode_queries);
  s.columns = call.choice.columns();
  s.ctas = Min(DecodeCtas(call.choice, call.facts) * call.facts.multiprocessors, kMaxCtas);
  s.warps = DecodeWarps(call.choice);
  s.fixed_split = options.fixed_split ? 1 : 0;
  s.deals = a.q.shape[0] > kMaxFreshTokens ? 1 : 0;
  if (options.max_queries == 0 || options.max_queries > options.decode_queries) {
    s.prefill_tokens =
        call.wgmma ? WgmmaTokens(s.group) : PrefillTokens(call.choice.head_dim, s.group);
    s.prefill_classes = call.wgmma ? kWgmmaCostClasses : kPrefillCostClasses;
  }
  s.sharing = SharesPrefixes(options, s, call.wgmma) ? 1 : 0;
  s.share_all = sharing == PrefixSharing::kAll ? 1 : 0;
  s.shared_keys = WgmmaKeys(call.choice.head_dim);
  s.multiprocessors = call.facts.multiprocessors;
  return s;
}

// Two CTAs on a multiprocessor hide each other's ends of segments: on an H200 that is 5 to 7 % of
// one row of 1k and 8 % of rows whose units are dealt, and costs 1 % at eight rows of 8k. Where
// only one fits, it had better have eight warps.
bool PickPair(const DecodeChoice& choice, const AttentionOptions& options, DecodeCtaShape shape,
              const DeviceFacts& facts) {
  if (shape != DecodeCtaShape::kAuto) return shape == DecodeCtaShape::kPair;
  // Which warp sees which tile decides the bits: a fixed split is the same on every device.
  if (options.fixed_split) return true;
  DecodeChoice pair = choice;
  pair.pair = true;
  return DecodeCtas(pair, facts) > 1;
}

// The choice has to be the same for a plan and all its layers, so it reads shapes, strides and the
// plan's options alone. Where nothing is decoded, every query's sums are to have one order however
// its row is cut: that is shown for the portable kernel.
Status PickPrefill(const PagedAttentionArgs& a, const AttentionOptions& options,
                   PrefillKernel kernel, AttentionCall* call) {
  if (kernel == PrefillKernel::kAuto && options.decode_queries == 0) return Status::Ok();
  call->wgmma = kernel != PrefillKernel::kPortable && FitsWgmma(a, call->facts);
  if (kernel != PrefillKernel::kWgmma || call->wgmma) return Status::Ok();
  return InvalidOp(kOp,
                   "the wgmma prefill kernel was asked for, need compute capability 9.0 and a "
                   "driver that makes tensor maps");
}

Status CheckOptions(const PagedAttentionArgs& a, const AttentionOptions& o) {
  const auto text = [](int64_t v) { return std::to_string(v); };
  if (o.max_queries < 0) {
    return InvalidOp(kOp, "max_queries is " + text(o.max_queries) + ", need 0 (unknown) or more");
  }
  if (o.decode_queries < 0 || o.decode_queries > INT32_MAX / a.q.shape[1]) {
    return InvalidOp(kOp, "decode_queries is " + text(o.decode_queries) + ", need 0 to " +
                              text(INT32_MAX / a.q.shape[1]));
  }
  if (a.invariant && o.decode_queries != 0) {
    return InvalidOp(kOp, "invariant is set with decode_queries " + text(o.decode_queries) +
                              ", need 0: a row of one query would have a kernel of its own");
  }
  if (a.block_table.shape[1] * a.cache.shape[3] > kMaxLength) {
    return InvalidOp(kOp, "block_table has " + text(a.block_table.shape[1]) +
                              " columns, need at most 2^30 tokens a row");
  }
  if (a.q.shape[0] * a.q.shape[1] >= kMaxGrid) {
    return InvalidOp(kOp, "q has " + text(a.q.shape[0]) + " tokens, need fewer than 2^31 heads");
  }
  return Status::Ok();
}

Status CheckPlanMemory(const PagedAttentionArgs& a, const AttentionPlan& plan,
                       const AttentionCall& call) {
  if (!call.tensor_cores) return Status::Ok();
  const int64_t need = LayOutPlan(nullptr, call.shape, call.capacity, a.q.shape[2]).bytes;
  if (plan.bytes < need) {
    return InvalidOp(kOp, "the plan has " + std::to_string(plan.bytes) + " bytes, need " +
                              std::to_string(need) + " (AttentionPlanBytes)");
  }
  if (plan.memory == nullptr || reinterpret_cast<uintptr_t>(plan.memory) % kMemoryAlign != 0) {
    return InvalidOp(kOp, "the plan's memory is null or not 256-byte aligned");
  }
  return Status::Ok();
}

CommonParams CommonParamsOf(const PagedAttentionArgs& a, const PlanParams& plan) {
  CommonParams p{};
  p.query_start = plan.query_start;
  p.seq_len = plan.seq_len;
  p.row_slot = plan.row_slot;
  p.table = a.block_table.ptr<int32_t>();
  p.table_stride = a.block_table.stride[0];
  p.slots = static_cast<int32_t>(a.block_table.shape[0]);
  p.max_blocks = static_cast<int32_t>(a.block_table.shape[1]);
  p.block_size = static_cast<int32_t>(a.cache.shape[3]);
  p.rows = plan.shape.rows;
  p.common = plan.parts.common;
  return p;
}

LaunchShape MakeLaunch(const AttentionCall& call, Stream stream) {
  LaunchShape launch;
  launch.dependent = call.dependent;
  launch.stream = stream;
  return launch;
}

Status EnqueueGeneric(const PagedAttentionArgs& a, const AttentionCall& call, Stream stream) {
  GenericParams p{};
  p.layer = MakeLayer(a);
  p.token_stride = a.cache.stride[3] * DTypeSize(a.cache.dtype);
  p.query_start = a.query_start.ptr<int32_t>();
  p.seq_len = a.seq_len.ptr<int32_t>();
  p.row_slot = a.row_slot.ptr<int32_t>();
  p.rows = static_cast<int32_t>(a.row_slot.shape[0]);
  p.heads = static_cast<int32_t>(a.q.shape[1]);
  p.head_dim = static_cast<int32_t>(a.q.shape[2]);
  p.scale = a.scale * a.k_scale;
  p.soft_cap = a.soft_cap;
  return LaunchGeneric(a.q.dtype, a.cache.dtype == DType::kF8E4M3, a.q.shape[0], p,
                       MakeLaunch(call, stream));
}

}  // namespace

bool IsEmpty(const PagedAttentionArgs& a) { return a.q.shape[0] == 0 || a.row_slot.shape[0] == 0; }

bool FitsWgmma(const PagedAttentionArgs& a, const DeviceFacts& facts) {
  return facts.wgmma && FitsTensorCores(a) && a.cache.dtype == a.q.dtype &&
         FitsTensorMap(a.cache) && FitsTensorMap(MappedQueries(a.q));
}

Status ResolveCall(const PagedAttentionArgs& a, const AttentionOptions& options,
                   const AttentionKernels& kernels, AttentionCall* call) {
  OCTAVO_RETURN_IF_ERROR(CheckOptions(a, options));
  const Result<DeviceFacts> facts = CurrentDeviceFacts();
  if (!facts.ok()) return facts.status();
  call->facts = facts.value();
  call->dependent = options.dependent_launch && call->facts.dependent_launch;
  call->tensor_cores = FitsTensorCores(a);
  if (!call->tensor_cores) return Status::Ok();
  const int64_t group = a.q.shape[1] / a.cache.shape[2];
  DecodeChoice& choice = call->choice;
  choice.head_dim = static_cast<int>(a.q.shape[2]);
  choice.half = a.q.dtype == DType::kF16;
  choice.fp8 = a.cache.dtype == DType::kF8E4M3;
  choice.column_tiles =
      choice.head_dim < 256 && group * options.decode_queries > kColumnsOfMma ? 2 : 1;
  choice.pair = PickPair(choice, options, kernels.decode, call->facts);
  OCTAVO_RETURN_IF_ERROR(PickPrefill(a, options, kernels.prefill, call));
  call->shape = MakeShape(a, options, kernels.sharing, *call);
  call->capacity = CapacityOf(call->shape, a.q.shape[0]);
  return Status::Ok();
}

Status ResolveCall(const PagedAttentionArgs& a, const AttentionPlan& plan, AttentionCall* call) {
  OCTAVO_RETURN_IF_ERROR(ResolveCall(a, plan.options, {}, call));
  call->plan_ready = plan.ready;
  return CheckPlanMemory(a, plan, *call);
}

Status EnqueuePlan(const PagedAttentionArgs& a, const AttentionCall& call, void* memory,
                   Stream stream) {
  if (!call.tensor_cores || IsEmpty(a)) return Status::Ok();
  PlanParams p{};
  p.shape = call.shape;
  p.query_start = a.query_start.ptr<int32_t>();
  p.seq_len = a.seq_len.ptr<int32_t>();
  p.row_slot = a.row_slot.ptr<int32_t>();
  p.parts = LayOutPlan(memory, call.shape, call.capacity, a.q.shape[2]);
  if (call.shape.sharing != 0) {
    OCTAVO_RETURN_IF_ERROR(LaunchCommon(CommonParamsOf(a, p), call.dependent, stream));
  }
  return LaunchPlan(p, call.capacity.segments, call.dependent, stream);
}

DecodeParams DecodeParamsOf(const PagedAttentionArgs& a, const AttentionCall& call, void* memory) {
  const PlanParts parts = LayOutPlan(memory, call.shape, call.capacity, a.q.shape[2]);
  const bool beside = call.shape.prefill_tokens > 0 && call.wgmma && call.dependent;
  DecodeParams p{};
  p.layer = MakeLayer(a);
  p.ctas = parts.ctas;
  p.segments = parts.segments;
  p.ticket = parts.ticket;
  p.arrived = parts.arrived;
  p.sums = parts.sums;
  p.stats = parts.stats;
  p.shared_sums = parts.shared_sums;
  p.shared_stats = parts.shared_stats;
  p.shared_stride = call.shape.rows;
  p.plan_ready = call.plan_ready;
  p.beside_prefill = beside;
  return p;
}

LaunchShape DecodeLaunch(const AttentionCall& call, Stream stream) {
  LaunchShape launch = MakeLaunch(call, stream);
  launch.grid = static_cast<unsigned>(call.shape.ctas);
  return launch;
}

Status EnqueueLayer(const PagedAttentionArgs& a, const AttentionCall& call, void* memory,
                    Stream stream) {
  if (IsEmpty(a)) return Status::Ok();
  if (!call.tensor_cores) return EnqueueGeneric(a, call, stream);
  if (call.shape.prefill_tokens > 0) {
    const PlanParts parts = LayOutPlan(memory, call.shape, call.capacity, a.q.shape[2]);
    LaunchShape launch = MakeLaunch(call, stream);
    constexpr uint32_t kOne = 1u << 16;
    const auto group = static_cast<uint32_t>(call.shape.group);
    const PrefillParams p{MakeLayer(a),         parts.tiles,       parts.prefill,
                          CeilDiv(kOne, group), parts.shared_sums, parts.shared_stats};
    const DecodeChoice& c = call.choice;
    launch.grid = static_cast<unsigned>(call.facts.multiprocessors);
    OCTAVO_RETURN_IF_ERROR(call.wgmma ? LaunchWgmmaPrefill(a.q, a.cache, p, launch)
                                      : LaunchPrefill(c.head_dim, c.half, c.fp8, p, launch));
  }
  if (call.shape.decode_queries == 0) return Status::Ok();
  return LaunchDecode(call.choice, DecodeParamsOf(a, call, memory), DecodeLaunch(call, stream));
}

Result<int64_t> AttentionPlanBytes(const PagedAttentionArgs& a, const AttentionOptions& options) {
  AttentionCall call;
  OCTAVO_RETURN_IF_ERROR(ResolveCall(a, options, {}, &call));
  if (!call.tensor_cores) return int64_t{0};
  return LayOutPlan(nullptr, call.shape, call.capacity, a.q.shape[2]).bytes;
}

Status PlanPagedAttention(const PagedAttentionArgs& a, const AttentionPlan& plan, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  AttentionCall call;
  OCTAVO_RETURN_IF_ERROR(ResolveCall(a, plan, &call));
  return EnqueuePlan(a, call, plan.memory, stream);
}

Status PagedAttention(const PagedAttentionArgs& a, const AttentionPlan& plan, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  AttentionCall call;
  OCTAVO_RETURN_IF_ERROR(ResolveCall(a, plan, &call));
  return EnqueueLayer(a, call, plan.memory, stream);
}

Status PagedAttention(const PagedAttentionArgs& a, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  AttentionOptions options;
  if (a.invariant) options.decode_queries = 0;  // the plain kernel takes a query at a time anyway
  OCTAVO_RETURN_IF_ERROR(CheckOptions(a, options));
  const Result<DeviceFacts> facts = CurrentDeviceFacts();
  if (!facts.ok()) return facts.status();
  if (IsEmpty(a)) return Status::Ok();
  AttentionCall call;
  call.facts = facts.value();
  call.dependent = call.facts.dependent_launch;
  return EnqueueGeneric(a, call, stream);
}

}  // namespace octavo::cuda

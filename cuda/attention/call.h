// One call of paged attention, resolved on the host: which kernels, how many CTAs, which memory.
#pragma once

#include "attention/decode.h"
#include "attention/plan.h"
#include "attention/prefill.h"
#include "attention/prefill_wgmma.h"
#include "octavo/cuda_attention.h"

namespace octavo::cuda {

// How decode CTAs are made: one of eight warps on a multiprocessor, or a pair of four warps each.
enum class DecodeCtaShape { kAuto, kWide, kPair };

// Who computes rows of many queries: a kernel on mma.sync, which runs everywhere, or one on wgmma
// and tensor maps, for compute capability 9.0. Auto is wgmma where it runs.
enum class PrefillKernel { kAuto, kPortable, kWgmma };

// Which prefixes are shared, of a plan whose options ask for it: those that are worth it, or all
// that may be.
enum class PrefixSharing { kAuto, kAll };

// What tests and benchmarks may choose; everybody else leaves it as it is.
struct AttentionKernels {
  DecodeCtaShape decode = DecodeCtaShape::kAuto;
  PrefillKernel prefill = PrefillKernel::kAuto;
  PrefixSharing sharing = PrefixSharing::kAuto;
};

struct AttentionCall {
  DeviceFacts facts;
  bool tensor_cores = false;  // else the generic kernel, which has no plan
  DecodeChoice choice;
  bool wgmma = false;  // the prefill kernel
  PlanShape shape;
  PlanCapacity capacity;
  bool dependent = false;
  bool plan_ready = false;  // as AttentionPlan::ready
};

// A call that has nothing to do.
bool IsEmpty(const PagedAttentionArgs& a);

// Whether the wgmma prefill kernel takes these tensors on this device and driver.
bool FitsWgmma(const PagedAttentionArgs& a, const DeviceFacts& facts);

// REQUIRES: Validate(a) is ok.
Status ResolveCall(const PagedAttentionArgs& a, const AttentionOptions& options,
                   const AttentionKernels& kernels, AttentionCall* call);

// The same as a plan says, whose memory is checked.
Status ResolveCall(const PagedAttentionArgs& a, const AttentionPlan& plan, AttentionCall* call);

Status EnqueuePlan(const PagedAttentionArgs& a, const AttentionCall& call, void* memory,
                   Stream stream);
// What decode kernels are told of a layer, and their grid. REQUIRES: call.tensor_cores.
DecodeParams DecodeParamsOf(const PagedAttentionArgs& a, const AttentionCall& call, void* memory);
LaunchShape DecodeLaunch(const AttentionCall& call, Stream stream);
Status EnqueueLayer(const PagedAttentionArgs& a, const AttentionCall& call, void* memory,
                    Stream stream);

}  // namespace octavo::cuda

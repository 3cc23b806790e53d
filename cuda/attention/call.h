// One call of paged attention, resolved on the host: which kernels, how many CTAs, which memory.
#pragma once

#include "attention/decode.h"
#include "attention/plan.h"
#include "attention/prefill.h"
#include "octavo/cuda_attention.h"

namespace octavo::cuda {

struct AttentionCall {
  DeviceFacts facts;
  bool tensor_cores = false;  // else the generic kernel, which has no plan
  DecodeChoice choice;
  PlanShape shape;
  PlanCapacity capacity;
  bool dependent = false;
};

// How decode CTAs are made: one of eight warps on a multiprocessor, or a pair of four warps each.
enum class DecodeCtaShape { kAuto, kWide, kPair };

// REQUIRES: Validate(a) is ok.
Status ResolveCall(const PagedAttentionArgs& a, const AttentionOptions& options,
                   DecodeCtaShape shape, AttentionCall* call);

Status EnqueuePlan(const PagedAttentionArgs& a, const AttentionCall& call, void* memory,
                   Stream stream);
Status EnqueueLayer(const PagedAttentionArgs& a, const AttentionCall& call, void* memory,
                    Stream stream);

}  // namespace octavo::cuda

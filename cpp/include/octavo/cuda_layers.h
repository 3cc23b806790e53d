// The CUDA backend of the ops of experts, recurrent layers and latent attention. Conventions are
// those of cuda_ops.h: tensors on the current device, nothing allocated, nothing read on the host
// but shapes, bad indices skipped.
#pragma once

#include "octavo/cuda_ops.h"
#include "octavo/ops_latent.h"
#include "octavo/ops_moe.h"
#include "octavo/ops_state.h"

namespace octavo::cuda {

// Up to 1024 experts.
Status MoeRoute(const MoeRouteArgs& a, Stream stream);
// A pair whose expert does not exist gets place -1; places that nobody owns name token 0.
Status MoeGroup(const MoeGroupArgs& a, Stream stream);
// Up to 1024 experts. bfloat16 and float16 with rows of x and weight on 16 bytes run on tensor
// cores, everything else on a plain kernel. How many rows an expert has is read on the device
// alone; rows that no expert owns are left as they are.
Status GroupedLinear(const GroupedLinearArgs& a, Stream stream);
// A place out of range adds nothing.
Status MoeCombine(const MoeCombineArgs& a, Stream stream);
Status ClampedSwiglu(const ClampedSwigluArgs& a, Stream stream);

// Slots must differ, else which token stays is undefined.
Status LatentCacheWrite(const LatentCacheWriteArgs& a, Stream stream);
// bfloat16 and float16 with widths of whole steps of 16, C + R up to 576, C up to 512, rows of q,
// out and cache on 16 bytes and up to 2048 rows run on tensor cores, everything else on a plain
// kernel. A block that does not exist counts as zeros. Results repeat bit for bit for the same
// rows.
Status LatentAttention(const LatentAttentionArgs& a, Stream stream);

// A row whose table holds no block where its states belong is skipped: both get -1.
Status StateMapping(const StateMappingArgs& a, Stream stream);
// A row that ends past x, or whose blocks do not exist, is skipped. out is not x.
Status CausalConv1d(const CausalConv1dArgs& a, Stream stream);
// States of up to 512.
Status SsmScan(const SsmScanArgs& a, Stream stream);
Status GatedRmsNorm(const GatedRmsNormArgs& a, Stream stream);

}  // namespace octavo::cuda

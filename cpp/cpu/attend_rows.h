// Attention of a step's rows, checked already: what paged and latent attention share.
#pragma once

#include "octavo/ops.h"

namespace octavo::cpu {

// As PagedAttention, but `out` may be narrower than q: a value is then the first entries of what
// lies in its place.
void AttendRows(const PagedAttentionArgs& a);

}  // namespace octavo::cpu

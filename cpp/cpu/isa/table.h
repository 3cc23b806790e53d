// The kernel table of the instruction set that this file is compiled for.
#pragma once

#include "cpu/isa/attention.h"
#include "cpu/isa/e4m3.h"
#include "cpu/isa/gemm.h"
#include "cpu/isa/linear.h"
#include "cpu/isa/moe.h"
#include "cpu/isa/rows.h"
#include "cpu/isa/state.h"
#include "cpu/isa/vocab.h"

namespace octavo::cpu::OCTAVO_CPU_ISA {

constexpr Kernels MakeTable(const char* name) {
  Kernels k{};
  k.name = name;
  k.rms_norm = RmsNorm;
  k.add_rms_norm = AddRmsNorm;
  k.add = Add;
  k.widen = WidenElements;
  k.rope = Rope;
  k.quantize = Quantize;
  k.silu_mul = Gated<Silu>;
  k.gelu_tanh_mul = Gated<GeluTanh>;
  k.clamped_swiglu = ClampedSwiglu;
  k.weighted_sum = WeightedSum;
  k.linear_rows = LinearRows;
  k.gemm_scratch = GemmScratch;
  k.gemm_block = GemmBlock;
  k.soft_cap = SoftCap;
  k.conv_row = ConvRowChannels;
  k.scan_head = Scan;
  k.gated_norm = GatedNorm;
  k.attend_scratch = AttendScratch;
  k.attend = Attend;
  k.attend_merge = AttendMerge;
  k.attend_finish = AttendFinish;
  k.largest = Largest;
  k.find = Find;
  k.exp_weights = ExpWeights;
  k.exp_sum = ExpSum;
  k.chunk_sums = ChunkSums;
  k.count_above = CountAbove;
  k.select = Select;
  k.apply_mask = ApplyMask;
  k.mass_above = MassAbove;
  k.drop_below = DropBelow;
  return k;
}

}  // namespace octavo::cpu::OCTAVO_CPU_ISA

// The ops of block tables and blocks in host memory. No logic; their meaning stands in
// octavo/ops_tables.h.
#include "octavo/ops_tables.h"

#include "ops_views.h"

namespace octavo::bindings {
namespace {

void FetchBlocks(const Tensor& table, const Tensor& row_slot, const Tensor& seq_len, int64_t source,
                 int64_t source_slots, int64_t source_stride, int64_t block_size) {
  Call call;
  const FetchBlocksArgs args{call.View("table", table),
                             call.View("row_slot", row_slot),
                             call.View("seq_len", seq_len),
                             source,
                             source_slots,
                             source_stride,
                             block_size};
  call.Run(cpu::FetchBlocks, OCTAVO_CUDA_OP(FetchBlocks), args);
}

void CopyRuns(const Tensor& pool, const Tensor& memory, const Tensor& runs, bool to_pool) {
  Call call, host;  // the pool's device decides; the others lie in host memory anyway
  CopyRunsArgs args;
  args.pool = call.View("pool", pool);
  args.memory = host.View("memory", memory);
  args.runs = host.View("runs", runs);
  args.to_pool = to_pool;
  if (host.cuda()) throw nb::value_error("memory lies on a device: give host memory");
  call.Run(cpu::CopyRuns, OCTAVO_CUDA_OP(CopyRuns), args);
}

}  // namespace

void BindTables(nb::module_& m) {
  const auto arg = [](const char* name) { return nb::arg(name).noconvert(); };
  m.def("fetch_blocks", &FetchBlocks, arg("table"), arg("row_slot"), arg("seq_len"),
        nb::arg("source"), nb::arg("source_slots"), nb::arg("source_stride"),
        nb::arg("block_size"));
  m.def("copy_runs", &CopyRuns, arg("pool"), arg("memory"), arg("runs"), nb::arg("to_pool"));
}

}  // namespace octavo::bindings

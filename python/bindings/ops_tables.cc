// The op that fetches block tables. No logic; its meaning stands in octavo/ops_tables.h.
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

}  // namespace

void BindTables(nb::module_& m) {
  const auto arg = [](const char* name) { return nb::arg(name).noconvert(); };
  m.def("fetch_blocks", &FetchBlocks, arg("table"), arg("row_slot"), arg("seq_len"),
        nb::arg("source"), nb::arg("source_slots"), nb::arg("source_stride"),
        nb::arg("block_size"));
}

}  // namespace octavo::bindings

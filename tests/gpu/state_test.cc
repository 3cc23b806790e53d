// The ops of recurrent layers on CUDA beside the CPU's. Without a device every case is skipped.
#include "device_copy.h"
#include "octavo/cuda_layers.h"

namespace octavo::cuda {
namespace {

using cpu::Tensor;

// A step: prefill from nothing, decode in place, a chunk from another's snapshot, a row without
// tokens, one that is skipped, a prompt over several windows in place, and padding behind.
struct Rows {
  std::vector<int32_t> sizes = {7, 1, 3, 0, 2, 21, 1, 2};
  std::vector<int32_t> source = {-1, 4, 2, 1, 3, 7, -1, 8};
  std::vector<int32_t> target = {0, 4, 5, 6, -1, 7, 1, 8};
  std::vector<int32_t> starts = {0};
  int64_t tokens, blocks = 9;

  Rows() {
    for (const int32_t size : sizes) starts.push_back(starts.back() + size);
    tokens = starts.back() + 2;
  }
};

bool Near(DType dtype, const Tensor& got, const Tensor& want, double magnitude) {
  bool near = true;
  want.Each([&](int64_t at) {
    const double a = got.Get(at), b = want.Get(at);
    near = near && (std::isnan(b) ? std::isnan(a) : Alike(dtype, a, b, magnitude));
  });
  return near;
}

struct Conv {
  Conv(DType dtype, const Rows& rows, int64_t channels, int64_t taps)
      : out(dtype, {rows.tokens, channels}, 3),
        x(dtype, {rows.tokens, channels}, 5),
        weight(dtype, {channels, taps}, 1),
        bias(dtype, {channels}),
        state(dtype, {rows.blocks, taps - 1, channels}, 2) {}

  void Randomize(std::mt19937_64& rng) {
    for (Tensor* t : {&x, &weight, &bias, &state}) t->Randomize(rng);
  }
  void OnCpu(Rows& rows, bool with_bias) {
    CausalConv1dArgs a{out.view(),
                       x.view(),
                       weight.view(),
                       std::nullopt,
                       state.view(),
                       cpu::Column(rows.starts),
                       cpu::Column(rows.source),
                       cpu::Column(rows.target)};
    if (with_bias) a.bias = bias.view();
    RequireOk(cpu::CausalConv1d(a));
  }
  void OnCuda(Rows& rows, bool with_bias) {
    DeviceCopy dout(out), dx(x), dweight(weight), dbias(bias), dstate(state);
    DeviceCopy starts(rows.starts), source(rows.source), target(rows.target);
    CausalConv1dArgs a{dout.view(),   dx.view(),     dweight.view(), std::nullopt,
                       dstate.view(), starts.view(), source.view(),  target.view()};
    if (with_bias) a.bias = dbias.view();
    RequireOk(CausalConv1d(a, nullptr));
    dout.Fetch();
    dstate.Fetch();
  }

  Tensor out, x, weight, bias, state;
};

TEST_CASE("CUDA convolution is the CPU's, and so are the states it leaves" *
          doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(41);
  for (const DType dtype : cpu::kFloatTypes) {
    for (const auto& [channels, taps] :
         {std::pair<int64_t, int64_t>{1, 4}, {200, 4}, {77, 2}, {33, 3}, {130, 8}, {16, 5}}) {
      CAPTURE(channels);
      CAPTURE(taps);
      Rows rows;
      Conv got(dtype, rows, channels, taps);
      got.Randomize(rng);
      Conv want = got;
      got.OnCuda(rows, channels % 2 == 0);
      want.OnCpu(rows, channels % 2 == 0);
      CHECK(Near(dtype, got.out, want.out, 8.0));
      CHECK(got.state.bytes() == want.state.bytes());
    }
  }
}

struct ScanCase {
  int64_t heads, groups, dim, size;
};

struct Scan {
  Scan(DType dtype, const Rows& rows, const ScanCase& s)
      : out(dtype, {rows.tokens, s.heads, s.dim}, 1),
        x(dtype, {rows.tokens, s.heads, s.dim}, 4),
        dt(dtype, {rows.tokens, s.heads}, 3),
        b(dtype, {rows.tokens, s.groups, s.size}, 2),
        c(dtype, {rows.tokens, s.groups, s.size}, 6),
        a_log(dtype, {s.heads}),
        dt_bias(dtype, {s.heads}),
        skip(dtype, {s.heads}),
        state(DType::kF32, {rows.blocks, s.heads, s.size, s.dim}) {}

  void Randomize(std::mt19937_64& rng) {
    for (Tensor* t : {&x, &dt, &b, &c, &a_log, &dt_bias, &skip, &state}) t->Randomize(rng);
  }
  void OnCpu(Rows& rows) {
    RequireOk(cpu::SsmScan({out.view(), x.view(), dt.view(), b.view(), c.view(), a_log.view(),
                            dt_bias.view(), skip.view(), state.view(), cpu::Column(rows.starts),
                            cpu::Column(rows.source), cpu::Column(rows.target)}));
  }
  void OnCuda(Rows& rows) {
    DeviceCopy dout(out), dx(x), ddt(dt), db(b), dc(c), da(a_log), dbias(dt_bias), dskip(skip);
    DeviceCopy dstate(state), starts(rows.starts), source(rows.source), target(rows.target);
    RequireOk(
        SsmScan({dout.view(), dx.view(), ddt.view(), db.view(), dc.view(), da.view(), dbias.view(),
                 dskip.view(), dstate.view(), starts.view(), source.view(), target.view()},
                nullptr));
    dout.Fetch();
    dstate.Fetch();
  }

  Tensor out, x, dt, b, c, a_log, dt_bias, skip, state;
};

TEST_CASE("the CUDA scan is the CPU's, and so are the states it leaves" *
          doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(42);
  for (const DType dtype : cpu::kFloatTypes) {
    for (const ScanCase& s :
         {ScanCase{4, 1, 64, 16}, {6, 2, 24, 5}, {3, 3, 7, 40}, {2, 1, 80, 1}, {1, 1, 33, 130}}) {
      CAPTURE(s.dim);
      CAPTURE(s.size);
      Rows rows;
      Scan got(dtype, rows, s);
      got.Randomize(rng);
      Scan want = got;
      got.OnCuda(rows);
      want.OnCpu(rows);
      CHECK(Near(dtype, got.out, want.out, 200.0));
      CHECK(Near(DType::kF32, got.state, want.state, 20.0));
    }
  }
}

TEST_CASE("a sequence leaves the same bits on CUDA in any chunks" * doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(43);
  Rows rows;
  Conv conv(DType::kBF16, rows, 40, 4);
  Scan scan(DType::kBF16, rows, {2, 1, 40, 33});
  conv.Randomize(rng);
  scan.Randomize(rng);
  rows.starts = {0, 37};
  rows.source = {-1};
  rows.target = {2};
  Conv whole_conv = conv;
  Scan whole_scan = scan;
  whole_conv.OnCuda(rows, true);
  whole_scan.OnCuda(rows);
  int32_t first = 0, block = -1;
  for (const int32_t size : {1, 2, 13, 1, 20}) {
    // The chunk as the second of two rows, whose first starts the sequence anew each time.
    rows.starts = {0, first, first + size};
    rows.source = {-1, block};
    rows.target = {0, block = block < 0 ? 1 : 2};
    conv.OnCuda(rows, true);
    scan.OnCuda(rows);
    first += size;
  }
  CHECK(conv.out.bytes() == whole_conv.out.bytes());
  CHECK(scan.out.bytes() == whole_scan.out.bytes());
  for (int64_t s = 0; s < 33; ++s) {
    REQUIRE(scan.state.At({2, 1, s, 39}) == whole_scan.state.At({2, 1, s, 39}));
  }
  for (int64_t c = 0; c < 40; ++c) {
    REQUIRE(conv.state.At({2, 0, c}) == whole_conv.state.At({2, 0, c}));
  }
}

TEST_CASE("rows of the CUDA recurrence whose blocks or tokens do not exist are skipped" *
          doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(44);
  Rows rows;
  Conv conv(DType::kF32, rows, 33, 4);
  Scan scan(DType::kF32, rows, {2, 1, 8, 4});
  conv.Randomize(rng);
  scan.Randomize(rng);
  rows.source = {9, INT32_MAX, -1, -1, -1, -1, -1, 0};
  rows.target = {0, 1, 9, INT32_MAX, INT32_MIN, -1, -1, 3};
  rows.starts.back() = INT32_MAX;
  const std::vector<unsigned char> conv_state = conv.state.bytes(), conv_out = conv.out.bytes();
  const std::vector<unsigned char> scan_state = scan.state.bytes(), scan_out = scan.out.bytes();
  conv.OnCuda(rows, true);
  scan.OnCuda(rows);
  CHECK(conv.state.bytes() == conv_state);
  CHECK(conv.out.bytes() == conv_out);
  CHECK(scan.state.bytes() == scan_state);
  CHECK(scan.out.bytes() == scan_out);
}

TEST_CASE("the CUDA gated norm is the CPU's, also over its input" * doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(45);
  for (const DType dtype : cpu::kFloatTypes) {
    for (const auto& [width, groups] :
         {std::pair<int64_t, int64_t>{64, 1}, {96, 4}, {45, 3}, {2080, 2}}) {
      Tensor x(dtype, {4, width}, 8), gate(dtype, {4, width}, 8), weight(dtype, {width});
      x.Randomize(rng);
      gate.Randomize(rng, 3.0);
      weight.Randomize(rng);
      Tensor want(dtype, {4, width});
      RequireOk(
          cpu::GatedRmsNorm({want.view(), x.view(), gate.view(), weight.view(), groups, 1e-5f}));
      DeviceCopy dx(x), dgate(gate), dweight(weight);
      RequireOk(GatedRmsNorm({dx.view(), dx.view(), dgate.view(), dweight.view(), groups, 1e-5f},
                             nullptr));
      dx.Fetch();
      for (int64_t i = 0; i < 4; ++i) {
        for (int64_t j = 0; j < width; ++j) {
          REQUIRE(Alike(dtype, x.At({i, j}), want.At({i, j}), 4.0));
        }
        REQUIRE(std::isnan(x.Get(x.Offset({i, width - 1}) + 1)));
      }
    }
  }
}

TEST_CASE("CUDA's state mapping is the CPU's, and rows without a block are skipped" *
          doctest::skip(!HasDevice())) {
  std::vector<int32_t> starts = {0, 6, 7, 8, 16, 16}, slot = {1, 0, 3, 2, 0};
  std::vector<int32_t> length = {6, 7, 9, 12, 0}, source(5, 99), target(5, 99);
  std::vector<int32_t> table = {7, 8, 0, 0, 9, 3, 0, 0, 5, 0, 6, 0, 0, 2, 4, 0};
  const auto map = [&] {
    DeviceCopy dsource(source), dtarget(target), dstarts(starts), dslot(slot), dlength(length);
    DeviceCopy dtable(table, 4, 4);
    RequireOk(StateMapping({dsource.view(), dtarget.view(), dstarts.view(), dslot.view(),
                            dlength.view(), dtable.view(), 4},
                           nullptr));
    dsource.Fetch();
    dtarget.Fetch();
  };
  map();
  CHECK(source == std::vector<int32_t>{-1, 8, 2, 5, -1});
  CHECK(target == std::vector<int32_t>{3, 8, 4, 6, -1});
  // A slot that does not exist, a length beyond the table, one that is too short, a null block.
  slot = {4, 0, 3, 2, 0};
  length = {6, INT32_MAX, 0, 16, 5};
  map();
  CHECK(source == std::vector<int32_t>{-1, -1, -1, -1, -1});
  CHECK(target == std::vector<int32_t>{-1, -1, -1, -1, -1});
}

TEST_CASE("the CUDA ops of recurrent layers refuse what the CPU's refuse, and wide states") {
  Rows rows;
  Scan scan(DType::kF32, rows, {1, 1, 4, 600});
  const auto args = [&] {
    return SsmScanArgs{scan.out.view(),
                       scan.x.view(),
                       scan.dt.view(),
                       scan.b.view(),
                       scan.c.view(),
                       scan.a_log.view(),
                       scan.dt_bias.view(),
                       scan.skip.view(),
                       scan.state.view(),
                       cpu::Column(rows.starts),
                       cpu::Column(rows.source),
                       cpu::Column(rows.target)};
  };
  CHECK(cpu::Refused(SsmScan(args(), nullptr), "the state size is 600, need at most 512 on CUDA"));
  SsmScanArgs half = args();
  half.state = scan.x.view();
  CHECK(cpu::Refused(SsmScan(half, nullptr), "ssm_scan: state"));
  Conv conv(DType::kF32, rows, 8, 4);
  CausalConv1dArgs c{conv.x.view(),
                     conv.x.view(),
                     conv.weight.view(),
                     std::nullopt,
                     conv.state.view(),
                     cpu::Column(rows.starts),
                     cpu::Column(rows.source),
                     cpu::Column(rows.target)};
  CHECK(cpu::Refused(CausalConv1d(c, nullptr), "out is x"));
}

}  // namespace
}  // namespace octavo::cuda

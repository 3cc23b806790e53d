#include "attention_problem.h"

#include <cstring>
#include <map>

#include "answers.h"

namespace octavo::cuda {
namespace {

using cpu::Tensor;

constexpr int32_t kPoisonedEntry = INT32_MAX;  // a table entry that nobody may follow

int64_t Ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t BlocksOf(const Problem& p, const Row& r) { return Ceil(r.length, p.block_size); }

int64_t PoolBlocks(const Problem& p) {
  int64_t n = 1;  // the null block
  for (const Row& r : p.rows) n += BlocksOf(p, r);
  return n + n / 4;
}

int64_t Bytes(const Tensor& t) { return static_cast<int64_t>(t.bytes().size()); }

template <typename T>
int64_t Bytes(const std::vector<T>& v) {
  return static_cast<int64_t>(v.size() * sizeof(T));
}

TensorView At(TensorView v, const DeviceMemory& memory) {
  v.data = memory.data();
  return v;
}

// Whether every query's window has left a block behind: it has been given back, and the table names
// the null block instead.
bool IsGivenBack(const Problem& p, const Row& r, int64_t block) {
  if (p.window == 0 || r.queries > r.length) return false;
  const auto window = static_cast<int32_t>(p.chunked ? -p.window : p.window);
  return (block + 1) * p.block_size <= FirstKey(r.queries, r.length, window);
}

// The null block holds zeros, and nobody writes there.
void ClearNullBlock(Tensor* cache) {
  const int64_t end = cache->Offset({1, 0, 0, 0, 0});
  for (int64_t i = cache->Offset({0, 0, 0, 0, 0}); i < end; ++i) cache->Put(i, 0.0);
}

// Fills blocks with numbers, drawn from a pool in random order; everything else but the null block
// stays NaN.
class PoolFiller {
 public:
  PoolFiller(const Problem& p, Tensor* cache)
      : p_(p), cache_(cache), rng_(p.seed), blocks_(static_cast<size_t>(cache->dim(0)) - 1) {
    std::iota(blocks_.begin(), blocks_.end(), 1);
    std::shuffle(blocks_.begin(), blocks_.end(), rng_);
    ClearNullBlock(cache);
  }

  // The row's block number `b`.
  int32_t BlockOf(const Row& r, int64_t b) {
    if (b >= r.family_blocks) return Fill(std::min(p_.block_size, r.length - b * p_.block_size));
    std::vector<int32_t>& family = families_[r.family];
    if (b == static_cast<int64_t>(family.size())) family.push_back(Fill(p_.block_size));
    return family[static_cast<size_t>(b)];
  }

 private:
  int32_t Fill(int64_t live) {
    const int32_t id = blocks_[taken_++];
    for (int64_t kv = 0; kv < 2; ++kv) {
      for (int64_t h = 0; h < p_.kv_heads; ++h) {
        for (int64_t t = 0; t < live; ++t) {
          const int64_t at = cache_->Offset({id, kv, h, t, 0});
          for (int64_t d = 0; d < p_.head_dim; ++d) cache_->Put(at + d, normal_(rng_));
        }
      }
    }
    return id;
  }

  const Problem& p_;
  Tensor* const cache_;
  std::mt19937_64 rng_;
  const cpu::Normals normal_;
  std::vector<int32_t> blocks_;
  size_t taken_ = 0;
  std::map<int32_t, std::vector<int32_t>> families_;
};

// The rows' table, over a pool that is filled for it.
std::vector<int32_t> FillPool(const Problem& p, int64_t max_blocks, Tensor* cache) {
  std::vector<int32_t> table(p.rows.size() * static_cast<size_t>(max_blocks), kPoisonedEntry);
  PoolFiller pool(p, cache);
  for (size_t r = 0; r < p.rows.size(); ++r) {
    // The table's lines run the other way than the rows.
    const size_t line = (p.rows.size() - 1 - r) * static_cast<size_t>(max_blocks);
    for (int64_t b = 0; b < BlocksOf(p, p.rows[r]); ++b) {
      const int32_t id = pool.BlockOf(p.rows[r], b);
      table[line + static_cast<size_t>(b)] = IsGivenBack(p, p.rows[r], b) ? 0 : id;
    }
  }
  return table;
}

}  // namespace

Instance::Instance(const Problem& p)
    : problem(p),
      q(p.dtype, {p.tokens(), p.kv_heads * p.group, p.head_dim}, p.gap),
      out(p.dtype, {p.tokens(), p.kv_heads * p.group, p.head_dim}, p.gap),
      cache(p.fp8 ? DType::kF8E4M3 : p.dtype,
            {PoolBlocks(p), 2, p.kv_heads, p.block_size, p.head_dim}),
      device_q(Bytes(q)),
      device_out(Bytes(out)),
      device_cache(Bytes(cache)),
      device_table(0),
      device_row_slot(Bytes(p.rows)),
      device_query_start(Bytes(p.rows) + 64),
      device_seq_len(Bytes(p.rows)),
      device_sinks(Bytes(p.rows) + p.kv_heads * p.group * 4),
      device_plan(0) {
  std::mt19937_64 rng(p.seed + 1);
  q.Randomize(rng, p.q_size);
  max_blocks = 1;
  for (const Row& r : p.rows) max_blocks = std::max(max_blocks, BlocksOf(p, r));
  table = FillPool(p, max_blocks, &cache);
  query_start.push_back(0);
  for (size_t r = 0; r < p.rows.size(); ++r) {
    row_slot.push_back(static_cast<int32_t>(p.rows.size() - 1 - r));
    query_start.push_back(query_start.back() + p.rows[r].queries);
    seq_len.push_back(p.rows[r].length);
  }
  std::normal_distribution<float> normal;
  for (int64_t h = 0; h < p.kv_heads * p.group; ++h) sinks.push_back(normal(rng));
  device_q.Copy(q.bytes().data(), Bytes(q));
  device_cache.Copy(cache.bytes().data(), Bytes(cache));
  device_row_slot.Copy(row_slot.data(), Bytes(row_slot));
  device_query_start.Copy(query_start.data(), Bytes(query_start));
  device_seq_len.Copy(seq_len.data(), Bytes(seq_len));
  device_sinks.Copy(sinks.data(), Bytes(sinks));
  device_table.Resize(Bytes(table));
  device_table.Copy(table.data(), Bytes(table));
}

PagedAttentionArgs Instance::Args(TensorView q_view, TensorView out_view, TensorView cache_view,
                                  const Instance* device) const {
  auto* self = const_cast<Instance*>(this);
  PagedAttentionArgs a;
  a.out = out_view;
  a.q = q_view;
  a.cache = cache_view;
  a.block_table = TensorView::Dense(self->table.data(), DType::kI32,
                                    {static_cast<int64_t>(problem.rows.size()), max_blocks});
  a.row_slot = cpu::Column(self->row_slot);
  a.query_start = cpu::Column(self->query_start);
  a.seq_len = cpu::Column(self->seq_len);
  a.scale = 1.0f / std::sqrt(static_cast<float>(problem.head_dim));
  a.window = problem.window;
  a.chunked = problem.chunked;
  a.soft_cap = problem.soft_cap;
  a.k_scale = problem.k_scale;
  a.v_scale = problem.v_scale;
  if (problem.sinks) a.sinks = cpu::Column(self->sinks, DType::kF32);
  if (device == nullptr) return a;
  a.block_table = At(a.block_table, device->device_table);
  a.row_slot = At(a.row_slot, device->device_row_slot);
  a.query_start = At(a.query_start, device->device_query_start);
  a.seq_len = At(a.seq_len, device->device_seq_len);
  if (a.sinks.has_value()) a.sinks = At(*a.sinks, device->device_sinks);
  return a;
}

PagedAttentionArgs Instance::DeviceArgs() const {
  return Args(At(q.view(), device_q), At(out.view(), device_out), At(cache.view(), device_cache),
              this);
}

AttentionCall Instance::Resolve() const {
  AttentionCall call;
  const Status s = ResolveCall(DeviceArgs(), problem.options,
                               {.prefill = problem.prefill, .sharing = problem.sharing}, &call);
  INFO(s.message());
  REQUIRE(s.ok());
  return call;
}

void Instance::Enqueue(const AttentionPlan& with, Stream stream) const {
  const PagedAttentionArgs a = DeviceArgs();
  const bool chosen = problem.prefill != PrefillKernel::kAuto;
  const AttentionCall call = Resolve();
  const Status planned =
      chosen ? EnqueuePlan(a, call, with.memory, stream) : PlanPagedAttention(a, with, stream);
  INFO(planned.message());
  REQUIRE(planned.ok());
  const Status done =
      chosen ? EnqueueLayer(a, call, with.memory, stream) : PagedAttention(a, with, stream);
  INFO(done.message());
  REQUIRE(done.ok());
}

std::vector<double> Instance::Gather(size_t row, int64_t head, int64_t kv) const {
  std::vector<double> x;
  const auto scale = double(kv == 0 ? problem.k_scale : problem.v_scale);
  const int32_t* line = table.data() + row_slot[row] * max_blocks;
  x.reserve(static_cast<size_t>(seq_len[row] * problem.head_dim));
  for (int32_t t = 0; t < seq_len[row]; ++t) {
    const int64_t at =
        cache.Offset({line[t / problem.block_size], kv, head, t % problem.block_size, 0});
    for (int64_t d = 0; d < problem.head_dim; ++d) x.push_back(scale * cache.Get(at + d));
  }
  return x;
}

void Instance::AnswerQuery(size_t row, int32_t token, int64_t head, const std::vector<double>& k,
                           const std::vector<double>& v, double* to) const {
  const Problem& p = problem;
  const auto dim = static_cast<size_t>(p.head_dim);
  const int64_t position = p.rows[row].length - query_start[row + 1] + token;
  int64_t first = p.window > 0 ? std::max<int64_t>(0, position - p.window + 1) : 0;
  if (p.chunked) first = position / p.window * p.window;
  std::vector<double> s, x, o(dim, 0.0);
  for (size_t d = 0; d < dim; ++d) x.push_back(q.Get(q.Offset({token, head, 0}) + int64_t(d)));
  for (int64_t j = first; j <= position; ++j) {
    const double* kj = k.data() + static_cast<size_t>(j) * dim;
    double score = Dot(x.data(), kj, p.head_dim) / std::sqrt(double(dim));
    if (p.soft_cap > 0.0f) score = p.soft_cap * std::tanh(score / p.soft_cap);
    s.push_back(score);
  }
  const double sink = p.sinks ? double(sinks[size_t(head)]) : -INFINITY;
  const double high = std::max(sink, *std::max_element(s.begin(), s.end()));
  double sum = std::exp(sink - high);
  for (size_t j = 0; j < s.size(); ++j) {
    const double w = std::exp(s[j] - high);
    const double* vj = v.data() + (static_cast<size_t>(first) + j) * dim;
    sum += w;
    for (size_t d = 0; d < dim; ++d) o[d] += w * vj[d];
  }
  for (size_t d = 0; d < dim; ++d) to[d] = o[d] / sum;
}

std::vector<double> Instance::Answer() const {
  const Problem& p = problem;
  const int64_t heads = p.kv_heads * p.group;
  std::vector<std::vector<double>> keys(p.rows.size() * static_cast<size_t>(p.kv_heads)), values;
  values = keys;
  OnEveryCore(static_cast<int64_t>(keys.size()), [&](int64_t i) {
    const auto row = static_cast<size_t>(i / p.kv_heads);
    keys[static_cast<size_t>(i)] = Gather(row, i % p.kv_heads, 0);
    values[static_cast<size_t>(i)] = Gather(row, i % p.kv_heads, 1);
  });
  std::vector<double> answer(static_cast<size_t>(p.tokens() * heads * p.head_dim), cpu::kNan);
  OnEveryCore(query_start.back(), [&](int64_t token) {
    size_t r = 0;
    while (query_start[r + 1] <= token) ++r;
    if (p.rows[r].length == 0) return;
    for (int64_t h = 0; h < heads; ++h) {
      const size_t kv = r * static_cast<size_t>(p.kv_heads) + static_cast<size_t>(h / p.group);
      AnswerQuery(r, static_cast<int32_t>(token), h, keys[kv], values[kv],
                  &answer[static_cast<size_t>((token * heads + h) * p.head_dim)]);
    }
  });
  return answer;
}

void Instance::Run() {
  const AttentionCall call = Resolve();
  int64_t bytes = LayOutPlan(nullptr, call.shape, call.capacity, problem.head_dim).bytes;
  if (problem.prefill == PrefillKernel::kAuto) {
    const Result<int64_t> told = AttentionPlanBytes(DeviceArgs(), problem.options);
    REQUIRE(told.ok());
    bytes = told.value();
  }
  if (device_plan.size() < bytes) device_plan.Resize(bytes);
  device_plan.Fill(0xff);  // a plan needs no initial value
  device_out.Fill(0xff);
  plan = {device_plan.data(), device_plan.size(), problem.options};
  Enqueue(plan, nullptr);
  REQUIRE(cudaGetLastError() == cudaSuccess);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  const std::vector<unsigned char> bits = device_out.Bytes();
  std::copy_n(bits.begin(), out.bytes().size(), out.view().ptr<unsigned char>());
}

std::vector<PrefillTile> Instance::SharedTiles() const {
  const AttentionCall call = Resolve();
  const PlanParts parts =
      LayOutPlan(device_plan.data(), call.shape, call.capacity, problem.head_dim);
  const std::vector<unsigned char> bytes = device_plan.Bytes();
  const auto at = [&](const void* part) {
    return bytes.data() + (static_cast<const char*>(part) - static_cast<char*>(device_plan.data()));
  };
  int32_t count = 0;
  std::memcpy(&count, at(parts.prefill + kPrefillCount), sizeof(count));
  REQUIRE(count <= call.capacity.tiles);
  std::vector<PrefillTile> tiles(static_cast<size_t>(count));
  if (count > 0) std::memcpy(tiles.data(), at(parts.tiles), tiles.size() * sizeof(PrefillTile));
  std::erase_if(tiles, [](const PrefillTile& tile) { return !tile.shared(); });
  return tiles;
}

void Instance::CheckOut(const std::vector<double>& answer, double tolerance) const {
  const int64_t heads = problem.kv_heads * problem.group, dim = problem.head_dim;
  double worst = 0.0;
  int64_t wrong = 0, written = 0;
  for (int64_t i = 0; i < problem.tokens() * heads; ++i) {
    const double* want = answer.data() + i * dim;
    const int64_t at = out.Offset({i / heads, i % heads, 0});
    double error = 0.0, norm = 0.0;
    for (int64_t d = 0; d < dim; ++d) {
      const double got = out.Get(at + d);
      if (std::isnan(want[d])) {
        written += std::isnan(got) ? 0 : 1;
        continue;
      }
      error += (got - want[d]) * (got - want[d]);
      norm += want[d] * want[d];
    }
    const double relative = std::sqrt(error / std::max(norm, 1e-30));
    if (!(relative <= tolerance)) ++wrong;
    if (!(relative <= worst)) worst = relative;
  }
  CAPTURE(worst);
  CHECK(wrong == 0);
  CHECK(written == 0);
}

CapturedStep::CapturedStep(const Instance& instance) {
  REQUIRE(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking) == cudaSuccess);
  REQUIRE(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  instance.Enqueue(instance.plan, stream_);
  REQUIRE(cudaStreamEndCapture(stream_, &graph_) == cudaSuccess);
  REQUIRE(cudaGraphInstantiate(&exec_, graph_, 0) == cudaSuccess);
}

CapturedStep::~CapturedStep() {
  cudaGraphExecDestroy(exec_);
  cudaGraphDestroy(graph_);
  cudaStreamDestroy(stream_);
}

void CapturedStep::CheckReplays(Instance* instance, const std::vector<unsigned char>& bytes) const {
  for (int i = 0; i < 3; ++i) {
    instance->device_out.Fill(0xff);
    REQUIRE(cudaGraphLaunch(exec_, stream_) == cudaSuccess);
    REQUIRE(cudaStreamSynchronize(stream_) == cudaSuccess);
    CHECK(instance->DeviceOut() == bytes);
  }
}

}  // namespace octavo::cuda

// Slot attention on the CPU against its formula in float64, for every instruction set that can run here, and for the kernels of
// 64-byte vectors, which are compiled into this file for narrower ones.
#include "slot_attention/cpu.h"
#include "tests/tensors.h"

#define OCL_VECTOR_BYTES 64
#include "ocl/cpu/target_begin.h"
#include "slot_attention/cpu_backward.h"
#include "ocl/cpu/target_end.h"

namespace {

using testing::close;
using testing::context;
using testing::Order;
using testing::serial;
using testing::Tensor;

// ---- a problem, its solution in float64 and by the kernels

struct Shape {
  int64_t B = 2, H = 1, K = 7, N = 40, D = 32, E = 32;
};

struct Options {
  ocl::Dtype dtype = ocl::Dtype::float32;
  Order order = Order::rows_first;
  bool shared = false, eps_on_weights = true, attn = false;
  double spread = 1.0;  // standard deviation of query and key
  float scale = 0.2f, eps = 1e-3f;
};

struct Wanted {
  bool query = true, key = true, value = true;
};

struct Result {
  std::vector<double> updates, total, attn, query, key, value;
};

std::size_t size(int64_t n) { return static_cast<std::size_t>(n); }

struct Problem {
  Problem(const Shape& shape, const Options& options, unsigned seed) : s(shape), o(options) {
    std::mt19937 random(seed);
    if (o.shared) s.E = s.D;
    query = Tensor(o.dtype, s.B, s.H, s.K, s.D, o.order == Order::shared_batch ? Order::heads_first : o.order);
    key = Tensor(o.dtype, s.B, s.H, s.N, s.D, o.order);
    value = Tensor(o.dtype, s.B, s.H, s.N, s.E, o.order);
    grad_updates = Tensor(o.dtype, s.B, s.H, s.K, s.E, o.order);
    query.fill(random, o.spread);
    key.fill(random, o.spread);
    value.fill(random, 1.0);
    grad_updates.fill(random, 1.0);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < s.B * s.H * s.K * s.N && o.attn; ++i) grad_attn.push_back(normal(random));
    if (o.attn) grad_attn.push_back(0.0f);  // never empty: its address stands for "there is a gradient"
  }

  ocl::SlotAttention in() {
    ocl::SlotAttention in;
    in.dtype = o.dtype;
    in.B = s.B, in.H = s.H, in.K = s.K, in.N = s.N, in.D = s.D, in.E = s.E;
    in.scale = o.scale, in.eps = o.eps, in.eps_on_weights = o.eps_on_weights, in.shared = o.shared;
    in.query = query.view(), in.key = key.view(), in.value = o.shared ? key.view() : value.view();
    return in;
  }

  double value_at(int64_t b, int64_t h, int64_t n, int64_t e) const { return (o.shared ? key : value).get(b, h, n, e); }

  // Index into [B, H, K] of slot `slot` among those of all heads.
  int64_t row(int64_t b, int64_t slot) const { return b * s.H * s.K + slot; }

  Shape s;
  Options o;
  Tensor query, key, value, grad_updates;
  std::vector<float> grad_attn;
};

// attn [B, H * K, N] by its definition.
std::vector<double> compete(const Problem& p) {
  const Shape& s = p.s;
  const int64_t slots = s.H * s.K;
  std::vector<double> attn(size(s.B * slots * s.N));
  for (int64_t b = 0; b < s.B; ++b)
    for (int64_t n = 0; n < s.N; ++n) {
      double top = -testing::kInfinity, total = 0;
      for (int64_t slot = 0; slot < slots; ++slot) {
        double dot = 0;
        for (int64_t d = 0; d < s.D; ++d) dot += p.query.get(b, slot / s.K, slot % s.K, d) * p.key.get(b, slot / s.K, n, d);
        attn[size(p.row(b, slot) * s.N + n)] = dot * double{p.o.scale};
        top = std::max(top, dot * double{p.o.scale});
      }
      for (int64_t slot = 0; slot < slots; ++slot) total += std::exp(attn[size(p.row(b, slot) * s.N + n)] - top);
      for (int64_t slot = 0; slot < slots; ++slot) {
        double& share = attn[size(p.row(b, slot) * s.N + n)];
        share = std::exp(share - top) / total;
      }
    }
  return attn;
}

// Forward and backward, one (slot, token) at a time.
Result reference(const Problem& p) {
  const Shape& s = p.s;
  const int64_t slots = s.H * s.K;
  const double eps = p.o.eps, eps_on_weight = p.o.eps_on_weights ? eps : 0;
  Result r;
  r.attn = compete(p);
  r.total.assign(size(s.B * slots), p.o.eps_on_weights ? 0 : eps);
  r.updates.resize(size(s.B * slots * s.E));
  r.query.resize(size(s.B * slots * s.D));
  r.key.resize(size(s.B * s.H * s.N * s.D));
  r.value.resize(size(s.B * s.H * s.N * s.E));
  std::vector<double>& grad_value = p.o.shared ? r.key : r.value;
  const auto attn = [&](int64_t row, int64_t n) { return r.attn[size(row * s.N + n)]; };
  for (int64_t b = 0; b < s.B; ++b) {
    for (int64_t slot = 0; slot < slots; ++slot) {
      const int64_t row = p.row(b, slot), h = slot / s.K, k = slot % s.K;
      for (int64_t n = 0; n < s.N; ++n) r.total[size(row)] += attn(row, n) + eps_on_weight;
      for (int64_t n = 0; n < s.N; ++n)
        for (int64_t e = 0; e < s.E; ++e) {
          const double weight = (attn(row, n) + eps_on_weight) / r.total[size(row)];
          r.updates[size(row * s.E + e)] += weight * p.value_at(b, h, n, e);
          grad_value[size(((b * s.H + h) * s.N + n) * s.E + e)] += weight * p.grad_updates.get(b, h, k, e);
        }
    }
    std::vector<double> grad(size(slots));
    for (int64_t n = 0; n < s.N; ++n) {
      double mean = 0;
      for (int64_t slot = 0; slot < slots; ++slot) {
        const int64_t row = p.row(b, slot);
        grad[size(slot)] = 0;
        for (int64_t e = 0; e < s.E; ++e) {
          grad[size(slot)] += p.grad_updates.get(b, slot / s.K, slot % s.K, e) *
                              (p.value_at(b, slot / s.K, n, e) - r.updates[size(row * s.E + e)]) / r.total[size(row)];
        }
        if (p.o.attn) grad[size(slot)] += p.grad_attn[size(row * s.N + n)];
        mean += attn(row, n) * grad[size(slot)];
      }
      for (int64_t slot = 0; slot < slots; ++slot) {
        const int64_t row = p.row(b, slot), h = slot / s.K;
        const double grad_logit = attn(row, n) * (grad[size(slot)] - mean) * double{p.o.scale};
        for (int64_t d = 0; d < s.D; ++d) {
          r.query[size(row * s.D + d)] += grad_logit * p.key.get(b, h, n, d);
          r.key[size(((b * s.H + h) * s.N + n) * s.D + d)] += grad_logit * p.query.get(b, h, slot % s.K, d);
        }
      }
    }
  }
  return r;
}

struct Kernels {
  std::string name;
  std::function<void(const ocl::SlotAttentionForward&, const ocl::ParallelFor&)> forward;
  std::function<void(const ocl::SlotAttentionBackward&, const ocl::ParallelFor&)> backward;
};

std::vector<double> widened(const std::vector<float>& values) { return std::vector<double>(values.begin(), values.end()); }

Result solve(const Kernels& kernels, Problem& p, const ocl::ParallelFor& parallel = serial, const Wanted& wanted = {}) {
  const Shape& s = p.s;
  const Order order = p.o.order == Order::shared_batch ? Order::padded : p.o.order;
  const auto poison = [](int64_t count) { return std::vector<float>(size(count), std::nanf("")); };
  Tensor updates(p.o.dtype, s.B, s.H, s.K, s.E, order);
  std::vector<float> total = poison(s.B * s.H * s.K), attn = poison(p.o.attn ? s.B * s.H * s.K * s.N : 0);
  kernels.forward({p.in(), updates.view(), total.data(), p.o.attn ? attn.data() : nullptr}, parallel);

  Tensor query(p.o.dtype, s.B, s.H, s.K, s.D, order), key(p.o.dtype, s.B, s.H, s.N, s.D, order);
  Tensor value(p.o.dtype, s.B, s.H, s.N, s.E, order);
  ocl::SlotAttentionBackward work;
  work.in = p.in();
  work.updates = updates.view(), work.grad_updates = p.grad_updates.view();
  work.total = total.data();
  work.grad_attn = p.o.attn ? p.grad_attn.data() : nullptr;
  if (wanted.query) work.grad_query = query.view();
  if (wanted.key) work.grad_key = key.view();
  if (wanted.value && !p.o.shared) work.grad_value = value.view();
  kernels.backward(work, parallel);
  for (const Tensor* tensor : {&updates, &query, &key, &value}) CHECK(tensor->gaps_untouched());

  Result r;
  r.updates = updates.values();
  r.total = widened(total);
  r.attn = widened(attn);
  if (wanted.query) r.query = query.values();
  if (wanted.key) r.key = key.values();
  if (wanted.value && !p.o.shared) r.value = value.values();
  return r;
}

// ---- comparisons

double tolerance(ocl::Dtype dtype) {
  switch (dtype) {
    case ocl::Dtype::float32: return 2e-6;
    case ocl::Dtype::bfloat16: return 5e-3;
    default: return 7e-4;
  }
}

void check_close(const Result& got, const Result& expected, const Problem& p, double relative) {
  CHECK(close(got.updates, expected.updates, relative));
  CHECK(close(got.total, expected.total, 2e-6));
  if (p.o.attn) CHECK(close(got.attn, expected.attn, 2e-6));
  CHECK(close(got.query, expected.query, relative));
  CHECK(close(got.key, expected.key, relative));
  if (!p.o.shared) CHECK(close(got.value, expected.value, relative));
}

void check_same(const Result& a, const Result& b) {
  CHECK(testing::same(a.updates, b.updates));
  CHECK(testing::same(a.total, b.total));
  CHECK(testing::same(a.attn, b.attn));
  CHECK(testing::same(a.query, b.query));
  CHECK(testing::same(a.key, b.key));
  CHECK(testing::same(a.value, b.value));
}

// Image `b` of a result for several images.
std::vector<double> image(const std::vector<double>& values, int64_t images, int64_t b) {
  const auto each = static_cast<std::ptrdiff_t>(values.size() / size(images));
  return std::vector<double>(values.begin() + b * each, values.begin() + (b + 1) * each);
}

std::string describe(const Kernels& kernels, const Problem& p) {
  const Shape& s = p.s;
  std::string text = kernels.name + " " + testing::name_of(p.o.dtype) + " [B H K N D E] =";
  for (const int64_t extent : {s.B, s.H, s.K, s.N, s.D, s.E}) text += " " + std::to_string(extent);
  return text + " order " + std::to_string(static_cast<int>(p.o.order)) + (p.o.shared ? " shared" : "") + (p.o.attn ? " attn" : "") +
         (p.o.eps_on_weights ? "" : " eps on denominator");
}

Result check_against_float64(const Kernels& kernels, Problem& p, double relative) {
  context = describe(kernels, p);
  const Result got = solve(kernels, p);
  check_close(got, reference(p), p, relative);
  return got;
}

// ---- what must hold, for each set of kernels and each dtype

void agrees_with_float64(const Kernels& kernels, ocl::Dtype dtype) {
  const Shape shapes[] = {
      {2, 1, 7, 40, 32, 32},  {1, 1, 1, 1, 1, 1},    {1, 1, 7, 300, 64, 64}, {2, 2, 3, 33, 40, 24},  {1, 3, 4, 70, 19, 33},
      {1, 1, 11, 37, 96, 96}, {1, 1, 24, 65, 48, 8}, {2, 1, 2, 31, 5, 130},  {1, 1, 33, 257, 16, 7}, {1, 8, 2, 12, 12, 20},
  };
  for (const Shape& shape : shapes)
    for (const Order order : {Order::heads_first, Order::rows_first, Order::padded, Order::shared_batch}) {
      const auto variant = static_cast<unsigned>(&shape - shapes) + static_cast<unsigned>(order);
      Options options;
      options.dtype = dtype;
      options.order = order;
      options.eps_on_weights = variant % 2 == 0;
      options.attn = variant % 3 == 0;
      for (const bool shared : {false, true}) {
        options.shared = shared;
        Problem p(shape, options, variant);
        check_against_float64(kernels, p, tolerance(dtype));
      }
    }
}

void agrees_with_float64_for_random_sizes(const Kernels& kernels, ocl::Dtype dtype) {
  std::mt19937 random(11);
  const auto up_to = [&](unsigned most) { return static_cast<int64_t>(random() % most + 1); };
  for (unsigned seed = 0; seed < 30; ++seed) {
    const Shape shape{up_to(2), up_to(3), up_to(13), up_to(90), up_to(70), up_to(70)};
    Options options;
    options.dtype = dtype;
    options.order = static_cast<Order>(random() % 4);
    options.shared = random() % 2 == 0;
    options.eps_on_weights = random() % 2 == 0;
    options.attn = random() % 2 == 0;
    Problem p(shape, options, seed);
    check_against_float64(kernels, p, tolerance(dtype));
  }
}

void extreme_logits_stay_exact(const Kernels& kernels) {
  for (const bool eps_on_weights : {true, false}) {
    Options options;
    options.spread = 100.0;
    options.scale = 0.2f;  // logits up to about 2e4
    options.eps_on_weights = eps_on_weights;
    options.eps = 1e-8f;
    Problem p(Shape{2, 1, 7, 50, 32, 16}, options, 3);
    context = describe(kernels, p) + " with logits of 1e4";
    const Result got = solve(kernels, p), expected = reference(p);
    CHECK(close(got.updates, expected.updates, 1e-3));  // a logit of 1e4 is rounded by 1e-3
    for (const auto* values : {&got.updates, &got.total, &got.query, &got.key, &got.value}) CHECK(testing::all_finite(*values));
  }
}

void slot_that_nothing_fell_to_gives_zeros(const Kernels& kernels) {
  Options options;
  options.eps = 0.0f;
  options.attn = true;
  Problem p(Shape{1, 1, 2, 9, 8, 8}, options, 5);
  for (int64_t n = 0; n < p.s.N; ++n) p.key.set(0, 0, n, 0, 1000.0);
  p.query.set(0, 0, 0, 0, 1000.0);
  p.query.set(0, 0, 1, 0, -1000.0);
  context = describe(kernels, p);
  const Result got = solve(kernels, p);
  CHECK(got.total[1] == 0);
  CHECK(testing::all_zero(image(got.updates, 2, 1)));
  for (const auto* values : {&got.updates, &got.query, &got.key, &got.value}) CHECK(testing::all_finite(*values));
}

void nan_stays_in_its_image(const Kernels& kernels, ocl::Dtype dtype) {
  for (const bool shared : {false, true}) {
    Options options;
    options.dtype = dtype;
    options.shared = shared;
    options.attn = true;
    Problem p(Shape{2, 1, 7, 45, 24, 24}, options, 6);
    const Result clean = solve(kernels, p);
    p.key.set(1, 0, 3, 5, testing::kNan);
    p.query.set(1, 0, 2, 1, testing::kInfinity);
    context = describe(kernels, p);
    const Result got = solve(kernels, p);
    CHECK(testing::same(image(got.updates, 2, 0), image(clean.updates, 2, 0)));
    CHECK(testing::same(image(got.key, 2, 0), image(clean.key, 2, 0)));
    CHECK(testing::same(image(got.query, 2, 0), image(clean.query, 2, 0)));
    CHECK(!testing::all_finite(image(got.updates, 2, 1)));
  }
}

void bits_do_not_depend_on_threads(const Kernels& kernels, ocl::Dtype dtype) {
  for (const bool shared : {false, true}) {
    Options options;
    options.dtype = dtype;
    options.shared = shared;
    options.attn = true;
    Problem p(Shape{3, 2, 5, 700, 24, 24}, options, 7);
    context = describe(kernels, p);
    const Result expected = solve(kernels, p);
    for (const int64_t count : {2, 3, 7}) check_same(solve(kernels, p, testing::threads(count)), expected);
  }
}

void bits_do_not_depend_on_the_batch(const Kernels& kernels, ocl::Dtype dtype) {
  Options options;
  options.dtype = dtype;
  options.order = Order::heads_first;
  options.attn = true;
  Problem p(Shape{3, 1, 7, 300, 40, 40}, options, 8);
  context = describe(kernels, p);
  const Result all = solve(kernels, p);
  Problem one(Shape{1, 1, 7, 300, 40, 40}, options, 8);
  const auto take = [&](Tensor& to, const Tensor& from, int64_t rows) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t d = 0; d < 40; ++d) to.set(0, 0, i, d, from.get(2, 0, i, d));
  };
  take(one.query, p.query, 7), take(one.grad_updates, p.grad_updates, 7);
  take(one.key, p.key, 300), take(one.value, p.value, 300);
  one.grad_attn.assign(p.grad_attn.begin() + 2 * 7 * 300, p.grad_attn.end());
  check_same(solve(kernels, one), {image(all.updates, 3, 2), image(all.total, 3, 2), image(all.attn, 3, 2), image(all.query, 3, 2),
                                   image(all.key, 3, 2), image(all.value, 3, 2)});
}

void gradients_do_not_depend_on_which_are_wanted(const Kernels& kernels, ocl::Dtype dtype) {
  for (const bool shared : {false, true}) {
    Options options;
    options.dtype = dtype;
    options.shared = shared;
    options.attn = true;
    Problem p(Shape{2, 2, 3, 70, 21, 21}, options, 9);
    const Result all = solve(kernels, p);
    for (int bits = 0; bits < 8; ++bits) {
      const Wanted wanted{(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0};
      context = describe(kernels, p) + " wanted " + std::to_string(bits);
      const Result got = solve(kernels, p, serial, wanted);
      if (wanted.query) CHECK(testing::same(got.query, all.query));
      if (wanted.key) CHECK(testing::same(got.key, all.key));
      if (wanted.value) CHECK(testing::same(got.value, all.value));
    }
  }
}

void empty_sizes_give_zeros(const Kernels& kernels, ocl::Dtype dtype) {
  const Shape shapes[] = {{0, 1, 7, 20, 8, 8}, {2, 0, 7, 20, 8, 8}, {2, 1, 0, 20, 8, 8}, {2, 1, 7, 0, 8, 8},
                          {2, 1, 7, 20, 0, 8}, {2, 1, 7, 20, 8, 0}, {2, 1, 7, 20, 0, 0}};
  for (const Shape& shape : shapes)
    for (const bool eps_on_weights : {true, false}) {
      Options options;
      options.dtype = dtype;
      options.attn = true;
      options.eps_on_weights = eps_on_weights;
      options.eps = shape.N == 0 ? 0.0f : 1e-3f;  // the float64 reference divides by the total
      Problem p(shape, options, 10);
      const Result got = shape.N == 0 ? solve(kernels, p) : check_against_float64(kernels, p, tolerance(dtype));
      for (const auto* values : {&got.updates, &got.query, &got.key, &got.value}) {
        CHECK(testing::all_finite(*values));
      }
      if (shape.N == 0) CHECK(testing::all_zero(got.updates) && testing::all_zero(got.query));
    }
}

// slot_attention_cpu hands the work to one of the instruction sets.
void dispatcher_runs_the_chosen_kernels(const std::vector<Kernels>& all) {
  const Kernels dispatched{"slot_attention_cpu",
                           [](const auto& work, const auto& parallel) { ocl::slot_attention_cpu(work, parallel); },
                           [](const auto& work, const auto& parallel) { ocl::slot_attention_cpu(work, parallel); }};
  Problem p(Shape{}, Options{}, 12);
  const Result got = solve(dispatched, p);
  const std::string chosen = ocl::cpu_isa() > ocl::CpuIsa::avx512 ? "avx512" : ocl::cpu_isa_name();
  for (const Kernels& kernels : all) {
    if (kernels.name == chosen) check_same(got, solve(kernels, p));
  }
}

std::vector<Kernels> kernels_that_run_here() {
  std::vector<Kernels> all = {{"portable", [](const auto& work, const auto& parallel) { ocl::portable::slot_attention(work, parallel); },
                               [](const auto& work, const auto& parallel) { ocl::portable::slot_attention(work, parallel); }},
                              {"64-byte vectors", [](const auto& work, const auto& parallel) { ocl::forward(work, parallel); },
                               [](const auto& work, const auto& parallel) { ocl::backward(work, parallel); }}};
#if OCL_CPU_X86
  if (ocl::cpu_isa_available(ocl::CpuIsa::avx2)) {
    all.push_back({"avx2", [](const auto& work, const auto& parallel) { ocl::avx2::slot_attention(work, parallel); },
                   [](const auto& work, const auto& parallel) { ocl::avx2::slot_attention(work, parallel); }});
  }
  if (ocl::cpu_isa_available(ocl::CpuIsa::avx512)) {
    all.push_back({"avx512", [](const auto& work, const auto& parallel) { ocl::avx512::slot_attention(work, parallel); },
                   [](const auto& work, const auto& parallel) { ocl::avx512::slot_attention(work, parallel); }});
  }
#endif
  return all;
}

void check(const Kernels& kernels) {
  for (const ocl::Dtype dtype : {ocl::Dtype::float32, ocl::Dtype::bfloat16, ocl::Dtype::float16}) {
    agrees_with_float64(kernels, dtype);
    agrees_with_float64_for_random_sizes(kernels, dtype);
    nan_stays_in_its_image(kernels, dtype);
    bits_do_not_depend_on_threads(kernels, dtype);
    bits_do_not_depend_on_the_batch(kernels, dtype);
    gradients_do_not_depend_on_which_are_wanted(kernels, dtype);
    empty_sizes_give_zeros(kernels, dtype);
  }
  extreme_logits_stay_exact(kernels);
  slot_that_nothing_fell_to_gives_zeros(kernels);
  std::printf("slot_attention: all checks hold for %s\n", kernels.name.c_str());
}

}  // namespace

int main() {
  const std::vector<Kernels> all = kernels_that_run_here();
  for (const Kernels& kernels : all) check(kernels);
  dispatcher_runs_the_chosen_kernels(all);
  return 0;
}

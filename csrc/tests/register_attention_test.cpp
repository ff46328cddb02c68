// Register attention on the CPU against its formula in float64, for every instruction set that can run here. Two more are compiled
// into this file: the kernels for vectors of 64 bytes on narrower ones, and those for bfloat16 over tiles and vectors of pairs in software.
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "register_attention/cpu.h"
#include "tests/tensors.h"

#define OCL_VECTOR_BYTES 64
#include "ocl/cpu/target_begin.h"
#include "register_attention/cpu_backward.h"
#include "register_attention/cpu_forward.h"
#include "register_attention/cpu_tiles.h"
#include "register_attention/cpu_vectors.h"
#include "ocl/cpu/target_end.h"

namespace {

using namespace testing;

// ---- a problem, its solution in float64 and by the kernels

struct Sizes {
  int64_t B = 2, H = 2, M = 40, K = 7, R = 9, D = 40;
};

struct Options {
  ocl::Dtype dtype = ocl::Dtype::float32;
  Order order = Order::rows_first;
  bool mask = false, sink = false, maps = false;
  double spread = 1.0;  // standard deviation of query and keys
  float scale = 0.15f;
};

struct Problem {
  Problem(const Sizes& sizes, const Options& options, unsigned seed) : s(sizes), o(options) {
    std::mt19937 random(seed);
    query = Tensor(o.dtype, s.B, s.H, s.M, s.D, o.order);
    key = Tensor(o.dtype, s.B, s.H, s.K, s.D, o.order == Order::shared_batch ? Order::heads_first : o.order);
    value = Tensor(o.dtype, s.B, s.H, s.K, s.D, o.order);
    register_key = Tensor(o.dtype, 1, s.H, s.R, s.D, o.order == Order::padded ? Order::padded : Order::heads_first);
    register_value = Tensor(o.dtype, 1, s.H, s.R, s.D, o.order);
    grad_output = Tensor(o.dtype, s.B, s.H, s.M, s.D, o.order);
    query.fill(random, o.spread);
    key.fill(random, o.spread);
    value.fill(random, 1.0);
    register_key.fill(random, o.spread);
    register_value.fill(random, 1.0);
    grad_output.fill(random, 1.0);
    std::normal_distribution<float> normal;
    if (o.mask) {
      for (int64_t i = 0; i < s.B * s.K; ++i) mask.push_back(random() % 3 != 0);
      mask.push_back(1);  // never empty: its address stands for "there is a mask"
    }
    for (int64_t h = 0; h < s.H && o.sink; ++h) sinks.push_back(normal(random));
    for (int64_t i = 0; i < s.B * s.K * s.M && o.maps; ++i) grad_maps.push_back(normal(random));
  }

  bool kept(int64_t b, int64_t k) const { return !o.mask || mask[static_cast<std::size_t>(b * s.K + k)] != 0; }

  ocl::RegisterAttention in() {
    ocl::RegisterAttention in;
    in.dtype = o.dtype;
    in.B = s.B, in.H = s.H, in.M = s.M, in.K = s.K, in.R = s.R, in.D = s.D;
    in.scale = o.scale;
    in.query = query.view(), in.key = key.view(), in.value = value.view();
    in.register_key = register_key.view(), in.register_value = register_value.view();
    in.register_key.batch = in.register_value.batch = 0;
    if (o.mask) in.slot_mask = mask.data();
    if (o.sink) in.sink_logits = sinks.data();
    return in;
  }

  Sizes s;
  Options o;
  Tensor query, key, value, register_key, register_value, grad_output;
  std::vector<uint8_t> mask;
  std::vector<float> sinks, grad_maps;
};

struct Result {
  std::vector<double> output, logsumexp, maps, query, key, value, register_key, register_value, sinks;
};

// The formula, one row at a time.
Result reference(const Problem& p) {
  const Sizes& s = p.s;
  const auto size = [](int64_t n) { return static_cast<std::size_t>(n); };
  Result r;
  r.output.resize(size(s.B * s.H * s.M * s.D));
  r.query = r.output;
  r.logsumexp.resize(size(s.B * s.H * s.M));
  r.maps.resize(size(s.B * s.K * s.M));
  r.key.resize(size(s.B * s.H * s.K * s.D));
  r.value = r.key;
  r.register_key.resize(size(s.H * s.R * s.D));
  r.register_value = r.register_key;
  r.sinks.resize(size(s.H));
  const int64_t keys = s.K + s.R;
  std::vector<double> weight(size(keys)), grad(size(keys));
  for (int64_t b = 0; b < s.B; ++b)
    for (int64_t h = 0; h < s.H; ++h)
      for (int64_t m = 0; m < s.M; ++m) {
        const auto key = [&](int64_t l, int64_t d) { return l < s.K ? p.key.get(b, h, l, d) : p.register_key.get(0, h, l - s.K, d); };
        const auto value = [&](int64_t l, int64_t d) { return l < s.K ? p.value.get(b, h, l, d) : p.register_value.get(0, h, l - s.K, d); };
        const auto kept = [&](int64_t l) { return l >= s.K || p.kept(b, l); };
        const double sink = p.o.sink ? double{p.sinks[size(h)]} : -kInfinity;
        double top = sink;
        for (int64_t l = 0; l < keys; ++l) {
          weight[size(l)] = -kInfinity;
          if (!kept(l)) continue;
          double dot = 0;
          for (int64_t d = 0; d < s.D; ++d) dot += p.query.get(b, h, m, d) * key(l, d);
          weight[size(l)] = dot * double{p.o.scale};
          top = std::max(top, weight[size(l)]);
        }
        double total = top == -kInfinity ? 0 : std::exp(sink - top);
        for (int64_t l = 0; l < keys; ++l) total += weight[size(l)] = kept(l) ? std::exp(weight[size(l)] - top) : 0;
        const int64_t row = (b * s.H + h) * s.M + m;
        r.logsumexp[size(row)] = total == 0 ? -kInfinity : top + std::log(total);
        double mean = 0;
        for (int64_t l = 0; l < keys; ++l) {
          weight[size(l)] = total == 0 ? 0 : weight[size(l)] / total;
          grad[size(l)] = 0;
          if (!kept(l)) continue;
          for (int64_t d = 0; d < s.D; ++d) {
            r.output[size(row * s.D + d)] += weight[size(l)] * value(l, d);
            grad[size(l)] += p.grad_output.get(b, h, m, d) * value(l, d);
          }
          if (l < s.K) {
            const int64_t at = (b * s.K + l) * s.M + m;
            r.maps[size(at)] += weight[size(l)] / static_cast<double>(s.H);
            if (p.o.maps) grad[size(l)] += double{p.grad_maps[size(at)]} / static_cast<double>(s.H);
          }
          mean += weight[size(l)] * grad[size(l)];
        }
        if (p.o.sink) r.sinks[size(h)] -= std::exp(sink - r.logsumexp[size(row)]) * mean;
        for (int64_t l = 0; l < keys; ++l) {
          if (!kept(l)) continue;
          const double score = weight[size(l)] * (grad[size(l)] - mean) * double{p.o.scale};
          for (int64_t d = 0; d < s.D; ++d) {
            r.query[size(row * s.D + d)] += score * key(l, d);
            const int64_t at = l < s.K ? ((b * s.H + h) * s.K + l) * s.D + d : (h * s.R + l - s.K) * s.D + d;
            (l < s.K ? r.key : r.register_key)[size(at)] += score * p.query.get(b, h, m, d);
            (l < s.K ? r.value : r.register_value)[size(at)] += weight[size(l)] * p.grad_output.get(b, h, m, d);
          }
        }
      }
  return r;
}

struct Kernels {
  std::string name;
  std::function<void(const ocl::RegisterAttentionForward&, const ocl::ParallelFor&)> forward;
  std::function<void(const ocl::RegisterAttentionBackward&, const ocl::ParallelFor&)> backward;
  bool tiles = false;          // bfloat16 is multiplied as such: weights are rounded to it too
  bool bfloat16_only = false;
};

struct Wanted {
  bool query = true, key = true, value = true, register_key = true, register_value = true, sinks = true;
};

std::vector<double> widened(const std::vector<float>& values) { return std::vector<double>(values.begin(), values.end()); }

Result solve(const Kernels& kernels, Problem& p, const ocl::ParallelFor& parallel = serial, const Wanted& wanted = {}) {
  const Sizes& s = p.s;
  const Order order = p.o.order == Order::shared_batch ? Order::padded : p.o.order;
  const auto poison = [](int64_t size) { return std::vector<float>(static_cast<std::size_t>(size), std::nanf("")); };
  Tensor output(p.o.dtype, s.B, s.H, s.M, s.D, order);
  std::vector<float> logsumexp = poison(s.B * s.H * s.M + 1), maps = poison(p.o.maps ? s.B * s.K * s.M : 0);
  kernels.forward({p.in(), output.view(), logsumexp.data(), p.o.maps ? maps.data() : nullptr}, parallel);
  logsumexp.pop_back();

  Tensor query(p.o.dtype, s.B, s.H, s.M, s.D, order), key(p.o.dtype, s.B, s.H, s.K, s.D, order);
  Tensor value(p.o.dtype, s.B, s.H, s.K, s.D, order), register_key(p.o.dtype, 1, s.H, s.R, s.D, order);
  Tensor register_value(p.o.dtype, 1, s.H, s.R, s.D, Order::heads_first);
  std::vector<float> sinks = poison(p.o.sink && wanted.sinks ? s.H : 0);
  ocl::RegisterAttentionBackward work;
  work.in = p.in();
  work.grad_output = p.grad_output.view();
  work.grad_maps = p.o.maps ? p.grad_maps.data() : nullptr;
  work.logsumexp = logsumexp.data();
  if (wanted.query) work.grad_query = query.view();
  if (wanted.key) work.grad_key = key.view();
  if (wanted.value) work.grad_value = value.view();
  if (wanted.register_key) work.grad_register_key = register_key.view();
  if (wanted.register_value) work.grad_register_value = register_value.view();
  work.grad_register_key.batch = work.grad_register_value.batch = 0;
  if (p.o.sink && wanted.sinks) work.grad_sink_logits = sinks.data();
  kernels.backward(work, parallel);
  for (const Tensor* tensor : {&output, &query, &key, &value, &register_key, &register_value}) CHECK(tensor->gaps_untouched());

  Result r;
  r.output = output.values();
  r.logsumexp = widened(logsumexp);
  r.maps = widened(maps);
  if (wanted.query) r.query = query.values();
  if (wanted.key) r.key = key.values();
  if (wanted.value) r.value = value.values();
  if (wanted.register_key) r.register_key = register_key.values();
  if (wanted.register_value) r.register_value = register_value.values();
  r.sinks = widened(sinks);
  return r;
}

// ---- comparisons

double tolerance(const Kernels& kernels, ocl::Dtype dtype) {
  switch (dtype) {
    case ocl::Dtype::float32: return 2e-6;
    case ocl::Dtype::bfloat16: return kernels.tiles ? 8e-3 : 4e-3;
    default: return 6e-4;
  }
}

void check_close(const Result& got, const Result& expected, const Problem& p, double relative) {
  CHECK(close(got.output, expected.output, relative));
  CHECK(close(got.logsumexp, expected.logsumexp, relative));
  if (p.o.maps) CHECK(close(got.maps, expected.maps, relative));
  CHECK(close(got.query, expected.query, relative));
  CHECK(close(got.key, expected.key, relative));
  CHECK(close(got.value, expected.value, relative));
  CHECK(close(got.register_key, expected.register_key, relative));
  CHECK(close(got.register_value, expected.register_value, relative));
  if (p.o.sink) CHECK(close(got.sinks, expected.sinks, 10 * relative));  // a sum of terms of both signs
}

void check_same(const Result& a, const Result& b) {
  CHECK(same(a.output, b.output));
  CHECK(same(a.logsumexp, b.logsumexp));
  CHECK(same(a.maps, b.maps));
  CHECK(same(a.query, b.query));
  CHECK(same(a.key, b.key));
  CHECK(same(a.value, b.value));
  CHECK(same(a.register_key, b.register_key));
  CHECK(same(a.register_value, b.register_value));
  CHECK(same(a.sinks, b.sinks));
}

// ---- what must hold, for each set of kernels and each dtype

void agrees_with_float64(const Kernels& kernels, ocl::Dtype dtype) {
  const Sizes shapes[] = {
      {2, 2, 40, 7, 9, 40}, {1, 1, 1, 1, 1, 1},   {1, 2, 33, 7, 77, 40}, {2, 1, 70, 11, 21, 64}, {1, 1, 20, 3, 5, 80},
      {1, 1, 18, 7, 77, 160}, {3, 1, 5, 24, 13, 33}, {1, 2, 37, 130, 301, 7}, {1, 1, 9, 5, 20, 333}, {2, 2, 31, 0, 12, 16},
      {2, 2, 34, 6, 0, 24},   {2, 1, 600, 4, 6, 8},
  };
  unsigned seed = 0;
  for (const Sizes& sizes : shapes) {
    for (int bits = 0; bits < 8; ++bits) {
      Options options;
      options.dtype = dtype;
      options.mask = bits & 1, options.sink = bits & 2, options.maps = bits & 4;
      options.order = static_cast<Order>((seed + static_cast<unsigned>(bits)) % 4);
      Problem problem(sizes, options, ++seed);
      check_close(solve(kernels, problem), reference(problem), problem, tolerance(kernels, dtype));
    }
  }
}

void agrees_with_float64_at_random(const Kernels& kernels, ocl::Dtype dtype) {
  std::mt19937 random(1234);
  const auto upto = [&](int64_t most) { return static_cast<int64_t>(random() % static_cast<unsigned>(most + 1)); };
  for (unsigned trial = 0; trial < 24; ++trial) {
    const Sizes sizes = {1 + upto(2), 1 + upto(2), 1 + upto(40), upto(30), upto(100), 1 + upto(170)};
    Options options;
    options.dtype = dtype;
    options.mask = upto(1), options.sink = upto(1), options.maps = upto(1);
    options.order = static_cast<Order>(upto(3));
    options.scale = std::array{0.1f, -0.07f, 0.0f}[static_cast<std::size_t>(upto(2))];
    Problem problem(sizes, options, trial);
    context = kernels.name + " trial " + std::to_string(trial);
    check_close(solve(kernels, problem), reference(problem), problem, tolerance(kernels, dtype));
  }
}

// Each gradient asked for alone, and all pairs that people use, have the bits of the full set.
void unwanted_gradients_change_nothing(const Kernels& kernels, ocl::Dtype dtype) {
  Options options;
  options.dtype = dtype;
  options.sink = options.maps = options.mask = true;
  Problem problem({2, 2, 50, 7, 20, 24}, options, 5);
  const Result all = solve(kernels, problem);
  for (int bits = 0; bits < 64; ++bits) {
    const Wanted wanted = {(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0, (bits & 8) != 0, (bits & 16) != 0, (bits & 32) != 0};
    const Result some = solve(kernels, problem, serial, wanted);
    CHECK(!wanted.query || same(some.query, all.query));
    CHECK(!wanted.key || same(some.key, all.key));
    CHECK(!wanted.value || same(some.value, all.value));
    CHECK(!wanted.register_key || same(some.register_key, all.register_key));
    CHECK(!wanted.register_value || same(some.register_value, all.register_value));
    CHECK(!wanted.sinks || same(some.sinks, all.sinks));
  }
}

void threads_change_nothing(const Kernels& kernels, ocl::Dtype dtype) {
  Options options;
  options.dtype = dtype;
  options.sink = options.maps = true;
  for (const Sizes& sizes : {Sizes{3, 2, 1100, 3, 5, 8}, Sizes{300, 1, 3, 2, 2, 4}}) {
    Problem problem(sizes, options, 6);
    const Result one = solve(kernels, problem);
    for (const int64_t count : {2, 3, 7}) check_same(solve(kernels, problem, threads(count)), one);
  }
}

void an_image_does_not_see_its_batch(const Kernels& kernels, ocl::Dtype dtype) {
  Options options;
  options.dtype = dtype;
  options.order = Order::heads_first;
  options.maps = true;
  const Sizes sizes = {3, 2, 530, 7, 20, 24};
  Problem batch(sizes, options, 7), alone(sizes, options, 7);
  alone.s.B = 1;
  const int64_t image = 1;
  const auto move = [&](Tensor& to, const Tensor& from, int64_t rows) {
    to = Tensor(dtype, 1, sizes.H, rows, sizes.D, Order::heads_first);
    to.each([&](int64_t, int64_t h, int64_t i, int64_t d) { to.set(0, h, i, d, from.get(image, h, i, d)); });
  };
  move(alone.query, batch.query, sizes.M);
  move(alone.key, batch.key, sizes.K);
  move(alone.value, batch.value, sizes.K);
  move(alone.grad_output, batch.grad_output, sizes.M);
  const int64_t map = sizes.K * sizes.M;
  alone.grad_maps.assign(batch.grad_maps.begin() + image * map, batch.grad_maps.begin() + (image + 1) * map);
  const Result many = solve(kernels, batch), one = solve(kernels, alone);
  const auto part = [&](const std::vector<double>& all) {
    const auto size = static_cast<std::ptrdiff_t>(all.size()) / sizes.B;
    return std::vector<double>(all.begin() + image * size, all.begin() + (image + 1) * size);
  };
  CHECK(same(one.output, part(many.output)));
  CHECK(same(one.logsumexp, part(many.logsumexp)));
  CHECK(same(one.maps, part(many.maps)));
  CHECK(same(one.query, part(many.query)));
  CHECK(same(one.key, part(many.key)));
  CHECK(same(one.value, part(many.value)));
}

void a_row_without_keys_is_zero(const Kernels& kernels, ocl::Dtype dtype) {
  Options options;
  options.dtype = dtype;
  options.mask = options.maps = true;
  Problem problem({2, 2, 35, 5, 0, 24}, options, 8);
  for (std::size_t k = 0; k < 5; ++k) problem.mask[k] = 0, problem.mask[5 + k] = 1;  // image 0 attends to nothing
  const Result got = solve(kernels, problem);
  check_close(got, reference(problem), problem, tolerance(kernels, dtype));
  for (std::size_t i = 0; i < got.output.size() / 2; ++i) CHECK(got.output[i] == 0 && got.query[i] == 0);
  for (std::size_t i = 0; i < got.key.size() / 2; ++i) CHECK(got.key[i] == 0 && got.value[i] == 0);
  for (std::size_t i = 0; i < got.maps.size() / 2; ++i) CHECK(got.maps[i] == 0);
  for (std::size_t i = 0; i < got.logsumexp.size() / 2; ++i) CHECK(got.logsumexp[i] == -kInfinity);
}

void a_masked_slot_may_hold_anything(const Kernels& kernels, ocl::Dtype dtype) {
  Options options;
  options.dtype = dtype;
  options.mask = true;
  Problem problem({1, 2, 35, 6, 9, 24}, options, 9);
  for (std::size_t k = 0; k < 6; ++k) problem.mask[k] = k % 2;
  const Result clean = solve(kernels, problem);
  for (const double anything : {kNan, kInfinity, -kInfinity, 1e4}) {
    for (int64_t h = 0; h < 2; ++h)
      for (int64_t k = 0; k < 6; k += 2)
        for (int64_t d = 0; d < 24; ++d) problem.key.set(0, h, k, d, anything), problem.value.set(0, h, k, d, anything);
    check_same(solve(kernels, problem), clean);
  }
  for (int64_t h = 0; h < 2; ++h)
    for (std::size_t k = 0; k < 6; k += 2)
      for (std::size_t d = 0; d < 24; ++d) CHECK(clean.key[(static_cast<std::size_t>(h) * 6 + k) * 24 + d] == 0);
}

void extreme_logits_stay_finite(const Kernels& kernels, ocl::Dtype dtype) {
  Options options;
  options.dtype = dtype;
  options.sink = true;
  options.spread = 50.0;  // logits of about 1e4
  options.scale = 1.0f;
  Problem problem({2, 2, 64, 7, 20, 16}, options, 10);
  const Result got = solve(kernels, problem), expected = reference(problem);
  for (const auto* values : {&got.output, &got.logsumexp, &got.query, &got.key, &got.value, &got.register_key, &got.register_value}) {
    CHECK(all_finite(*values));
  }
  CHECK(close(got.output, expected.output, std::max(1e-3, tolerance(kernels, dtype))));
  CHECK(close(got.logsumexp, expected.logsumexp, 1e-5));
  CHECK(close(got.value, expected.value, std::max(2e-3, tolerance(kernels, dtype))));
}

void values_that_are_not_finite_reach_only_their_rows(const Kernels& kernels, ocl::Dtype dtype) {
  for (const double value : {kNan, kInfinity, -kInfinity}) {
    Options options;
    options.dtype = dtype;
    options.order = Order::heads_first;
    Problem problem({1, 1, 40, 3, 9, 16}, options, 11);
    const Result clean = solve(kernels, problem);
    problem.query.set(0, 0, 17, 3, value);
    const Result got = solve(kernels, problem);
    for (std::size_t i = 0; i < got.output.size(); ++i) CHECK(i / 16 == 17 ? std::isnan(got.output[i]) : got.output[i] == clean.output[i]);
    for (std::size_t i = 0; i < got.query.size(); ++i) CHECK(i / 16 == 17 || got.query[i] == clean.query[i]);
    problem.register_key.set(0, 0, 2, 3, value);
    problem.sinks = {static_cast<float>(value)};
    problem.o.sink = true;
    solve(kernels, problem);  // nothing to compare: it returns
  }
}

void any_size_may_be_zero(const Kernels& kernels, ocl::Dtype dtype) {
  for (int bits = 0; bits < 64; ++bits) {
    const auto size = [&](int bit, int64_t otherwise) { return bits >> bit & 1 ? 0 : otherwise; };
    const Sizes sizes = {size(0, 2), size(1, 2), size(2, 33), size(3, 3), size(4, 5), size(5, 12)};
    Options options;
    options.dtype = dtype;
    options.mask = options.sink = bits % 3 == 0;
    options.maps = bits % 2 == 0;
    Problem problem(sizes, options, 12);
    check_close(solve(kernels, problem), reference(problem), problem, tolerance(kernels, dtype));
  }
}

void functions_of_vectors_are_close() {
  using ocl::Floats;
  const float infinity = std::numeric_limits<float>::infinity();
  for (float x = -126.0f; x < 127.0f; x += 0.0137f) {
    const double exact = std::exp2(static_cast<double>(x));
    CHECK(std::abs(ocl::exp2(x) / exact - 1) < 2.5e-7);
    CHECK(std::abs(ocl::exp2<ocl::Exp2::coarse>(ocl::broadcast(x))[3] / exact - 1) < 3.2e-6);
    CHECK(std::abs(ocl::log2(ocl::exp2(ocl::broadcast(x)))[1] - x) < 2.5e-7f * std::max(1.0f, std::abs(x)));
  }
  for (float x = 0.5f; x < 200.0f; x *= 1.00173f) {
    const double exact = std::log2(static_cast<double>(x));
    CHECK(std::abs(ocl::log2(ocl::broadcast(x))[2] - exact) < 2e-7 * std::max(1.0, std::abs(exact)));
  }
  CHECK(ocl::exp2(0.0f) == 1.0f && ocl::exp2(-127.0f) == 0.0f && ocl::exp2(-infinity) == 0.0f && std::isnan(ocl::exp2(std::nanf(""))));
  CHECK(ocl::log2(ocl::broadcast(1.0f))[0] == 0.0f && std::isnan(ocl::log2(ocl::broadcast(std::nanf("")))[0]));
  Floats rows[ocl::kLanes];
  for (int64_t row = 0; row < ocl::kLanes; ++row) {
    for (int64_t lane = 0; lane < ocl::kLanes; ++lane) rows[row][lane] = static_cast<float>((row * 37 + lane * 11) % 101);
  }
  float largest[ocl::kLanes];
  for (int64_t row = 0; row < ocl::kLanes; ++row) largest[row] = ocl::maximum(rows[row]);
  const Floats found = ocl::reduce_rows(rows, [](Floats a, Floats b) { return ocl::maximum(a, b); });
  for (int64_t row = 0; row < ocl::kLanes; ++row) CHECK(found[row] == largest[row]);
}

void instruction_sets_have_names_and_an_order() {
  CHECK(ocl::cpu_isa_available(ocl::CpuIsa::portable));
  CHECK(ocl::cpu_isa_available(ocl::cpu_isa()));
  CHECK(std::string(ocl::cpu_isa_name(ocl::CpuIsa::avx2)) == "avx2");
  CHECK(std::string(ocl::cpu_isa_name()) == ocl::cpu_isa_name(ocl::cpu_isa()));
}

std::vector<Kernels> every_instruction_set() {
  using Forward = void (*)(const ocl::RegisterAttentionForward&, const ocl::ParallelFor&);
  using Backward = void (*)(const ocl::RegisterAttentionBackward&, const ocl::ParallelFor&);
  std::vector<Kernels> all;
  const auto add = [&](const char* name, Forward forward, Backward backward, bool tiles = false, bool bfloat16_only = false) {
    all.push_back({name, forward, backward, tiles, bfloat16_only});
  };
  add("chosen", ocl::register_attention_cpu, ocl::register_attention_cpu, ocl::cpu_isa() >= ocl::CpuIsa::avx512_bf16);
  add("portable", ocl::portable::register_attention, ocl::portable::register_attention);
  using Vectors = ocl::VectorArithmetic;
  using Tiles = ocl::TileArithmetic<ocl::SoftwareTiles>;
  add("wide", ocl::forward<Vectors>, ocl::backward<Vectors>);
  add("software tiles", ocl::forward<Tiles>, ocl::backward<Tiles>, true, true);
  using Pairs = ocl::TileArithmetic<ocl::VectorsOfPairs>;
  add("software pairs", ocl::forward<Pairs>, ocl::backward<Pairs>, true, true);
#if OCL_CPU_X86
  if (ocl::cpu_isa_available(ocl::CpuIsa::avx2)) add("avx2", ocl::avx2::register_attention, ocl::avx2::register_attention);
  if (ocl::cpu_isa_available(ocl::CpuIsa::avx512)) add("avx512", ocl::avx512::register_attention, ocl::avx512::register_attention);
  if (ocl::cpu_isa_available(ocl::CpuIsa::avx512_bf16)) {
    add("avx512_bf16", ocl::avx512_bf16::register_attention, ocl::avx512_bf16::register_attention, true, true);
  }
  if (ocl::cpu_isa_available(ocl::CpuIsa::amx)) add("amx", ocl::amx::register_attention, ocl::amx::register_attention, true, true);
#endif
  return all;
}

}  // namespace

int main() {
  functions_of_vectors_are_close();
  instruction_sets_have_names_and_an_order();
  const char* names[] = {"float32", "bfloat16", "float16"};
  for (const Kernels& kernels : every_instruction_set()) {
    for (const ocl::Dtype dtype : {ocl::Dtype::float32, ocl::Dtype::bfloat16, ocl::Dtype::float16}) {
      if (kernels.bfloat16_only && dtype != ocl::Dtype::bfloat16) continue;
      context = kernels.name + " " + names[static_cast<int>(dtype)];
      std::printf("register_attention: %s\n", context.c_str());
      agrees_with_float64(kernels, dtype);
      unwanted_gradients_change_nothing(kernels, dtype);
      threads_change_nothing(kernels, dtype);
      an_image_does_not_see_its_batch(kernels, dtype);
      a_row_without_keys_is_zero(kernels, dtype);
      a_masked_slot_may_hold_anything(kernels, dtype);
      extreme_logits_stay_finite(kernels, dtype);
      values_that_are_not_finite_reach_only_their_rows(kernels, dtype);
      any_size_may_be_zero(kernels, dtype);
      agrees_with_float64_at_random(kernels, dtype);
    }
  }
  std::puts("register_attention: all checks hold");
  return 0;
}

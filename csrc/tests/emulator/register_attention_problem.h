// What the emulator tests of register attention are about: cases, their tensors, the results expected in float64, and errors.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "register_attention/cuda/plan.h"
#include "tests/emulator/tensors.h"

namespace ocl::register_attention::test {

using namespace ocl::test;

// A small device: blocks walk several tiles and images, and sums are cut into several chunks and parts.
inline Device small_device() {
  Device device;
  device.multiprocessors = 1;
  device.sum_multiprocessors = 1;
  device.sum_blocks_per_image = 4;
  return device;
}

// ---- Cases

enum class Mask { none, some, all_of_one_image };

enum Wanted : unsigned { query = 1, key = 2, value = 4, register_key = 8, register_value = 16, sink = 32, everything = 63 };

struct Case {
  const char* what = "";
  Dtype dtype = Dtype::bfloat16;
  int64_t B = 2, H = 2, M = 40, K = 7, R = 77, D = 40;
  Layout layout = Layout::heads_inside;
  Mask mask = Mask::none;
  bool sink = false, no_sink_in_first_head = false, maps = false;
  unsigned wanted = everything;
  double logits = 1.0;     // standard deviation of scale * query . key
  double offset = 0.0;     // added to every logit
  double scale = 1.0;      // times 1 / sqrt(D)
  double tolerance = 0.0;  // 0: by dtype
  double floor = 1e-2;     // errors are relative to the result, or to this share of the magnitudes that it sums where they cancel
  Device device = small_device();
};

inline std::string describe(const Case& c) {
  const char* types[] = {"float32", "bfloat16", "float16"};
  char text[256];
  std::snprintf(text, sizeof text, "%s: %s B=%d H=%d M=%d K=%d R=%d D=%d%s%s%s wanted=%u", c.what, types[static_cast<int>(c.dtype)],
                static_cast<int>(c.B), static_cast<int>(c.H), static_cast<int>(c.M), static_cast<int>(c.K), static_cast<int>(c.R),
                static_cast<int>(c.D), c.mask == Mask::none ? "" : " mask", c.sink ? " sink" : "", c.maps ? " maps" : "", c.wanted);
  return text;
}

struct Problem {
  Case c;
  Tensor query, key, value, register_key, register_value, grad_output;
  std::vector<uint8_t> mask;
  std::vector<float> sinks, grad_maps;
  float scale = 0;

  Problem(const Case& c_, unsigned seed) : c(c_) {
    std::mt19937 random(seed);
    query = Tensor(c.dtype, c.layout, c.B, c.H, c.M, c.D);
    key = Tensor(c.dtype, c.layout, c.B, c.H, c.K, c.D);
    value = Tensor(c.dtype, c.layout, c.B, c.H, c.K, c.D);
    register_key = Tensor(c.dtype, c.layout, 1, c.H, c.R, c.D);
    register_value = Tensor(c.dtype, c.layout, 1, c.H, c.R, c.D);
    grad_output = Tensor(c.dtype, c.layout, c.B, c.H, c.M, c.D);
    scale = static_cast<float>(c.scale / std::sqrt(static_cast<double>(std::max<int64_t>(c.D, 1))));
    for (Tensor* tensor : {&query, &key, &register_key}) tensor->fill(random, std::sqrt(c.logits));
    for (Tensor* tensor : {&value, &register_value, &grad_output}) tensor->fill(random, 1.0);
    if (c.offset != 0) fill_offset();
    std::normal_distribution<float> normal;
    if (c.sink) {
      for (int64_t h = 0; h < c.H; ++h) sinks.push_back(c.no_sink_in_first_head && h == 0 ? -infinity : normal(random) + 2.0f);
    }
    if (c.maps) {
      for (int64_t i = 0; i < c.B * c.K * c.M; ++i) grad_maps.push_back(normal(random));
    }
    if (c.mask != Mask::none) fill_mask(random);
  }

  // The first column of queries and keys adds the offset to scale * query . key.
  void fill_offset() {
    const double size = std::sqrt(std::fabs(c.offset) / scale);
    for (Tensor* tensor : {&query, &key, &register_key}) {
      tensor->each([&](int64_t b, int64_t h, int64_t m, int64_t d) {
        if (d == 0) tensor->set(b, h, m, d, tensor == &query ? size : std::copysign(size, c.offset));
      });
    }
  }

  // What is masked must not be read: it is NaN.
  void fill_mask(std::mt19937& random) {
    for (int64_t i = 0; i < c.B * c.K; ++i) mask.push_back(random() % 3 != 0 ? 1 : 0);
    for (int64_t k = 0; k < c.K && c.mask == Mask::all_of_one_image; ++k) mask[static_cast<std::size_t>((c.B - 1) * c.K + k)] = 0;
    key.each([&](int64_t b, int64_t h, int64_t k, int64_t d) {
      if (attends(b, k)) return;
      key.set(b, h, k, d, std::numeric_limits<double>::quiet_NaN());
      value.set(b, h, k, d, std::numeric_limits<double>::quiet_NaN());
    });
  }

  bool attends(int64_t b, int64_t slot) const { return mask.empty() || mask[static_cast<std::size_t>(b * c.K + slot)] != 0; }
  bool alive(int64_t b, int64_t k) const { return k >= c.K || attends(b, k); }
  double key_at(int64_t b, int64_t h, int64_t k, int64_t d) const {
    return k < c.K ? key.get(b, h, k, d) : register_key.get(0, h, k - c.K, d);
  }
  double value_at(int64_t b, int64_t h, int64_t k, int64_t d) const {
    return k < c.K ? value.get(b, h, k, d) : register_value.get(0, h, k - c.K, d);
  }

  RegisterAttention in() {
    RegisterAttention in;
    in.dtype = c.dtype;
    in.B = c.B, in.H = c.H, in.M = c.M, in.K = c.K, in.R = c.R, in.D = c.D;
    in.scale = scale;
    in.query = query.view(), in.key = key.view(), in.value = value.view();
    in.register_key = register_key.view(), in.register_value = register_value.view();
    in.slot_mask = mask.empty() ? nullptr : mask.data();
    in.sink_logits = sinks.empty() ? nullptr : sinks.data();
    return in;
  }
};

// ---- float64

struct Reference {
  Expected output, logsumexp, maps, grad_query, grad_key, grad_value, grad_register_key, grad_register_value, grad_sinks;
};

// One query: p over keys, its logsumexp, and the probability that the sink takes.
struct Row {
  std::vector<double> p;
  double logsumexp, sink;
};

inline Row attend(const Problem& problem, int64_t b, int64_t h, int64_t m) {
  const Case& c = problem.c;
  const auto total = static_cast<std::size_t>(c.K + c.R);
  Row row{std::vector<double>(total, 0.0), 0.0, 0.0};
  const double none = -std::numeric_limits<double>::infinity();
  const double sink = c.sink ? problem.sinks[static_cast<std::size_t>(h)] : none;
  double maximum = sink;
  for (std::size_t k = 0; k < total; ++k) {
    row.p[k] = none;
    if (!problem.alive(b, static_cast<int64_t>(k))) continue;
    double dot = 0.0;
    for (int64_t d = 0; d < c.D; ++d) dot += problem.query.get(b, h, m, d) * problem.key_at(b, h, static_cast<int64_t>(k), d);
    row.p[k] = problem.scale * dot;
    maximum = std::max(maximum, row.p[k]);
  }
  if (maximum == none) return {std::vector<double>(total, 0.0), none, 0.0};
  double sum = std::exp(sink - maximum);
  for (const double score : row.p) sum += std::exp(score - maximum);
  for (double& score : row.p) score = std::exp(score - maximum) / sum;
  row.logsumexp = maximum + std::log(sum);
  row.sink = std::exp(sink - maximum) / sum;
  return row;
}

// Tensors as [B, H, rows, D] in order.
inline Reference reference(const Problem& problem) {
  const Case& c = problem.c;
  const int64_t queries = c.B * c.H * c.M, slots = c.B * c.H * c.K, registers = c.H * c.R;
  Reference r{Expected(queries * c.D),   Expected(queries),         Expected(c.B * c.K * c.M),
              Expected(queries * c.D),   Expected(slots * c.D),     Expected(slots * c.D),
              Expected(registers * c.D), Expected(registers * c.D), Expected(c.H)};
  for (int64_t b = 0; b < c.B; ++b)
    for (int64_t h = 0; h < c.H; ++h)
      for (int64_t m = 0; m < c.M; ++m) {
        const int64_t slice = b * c.H + h, query = (slice * c.M + m) * c.D;
        const auto key_row = [&](int64_t k) { return (k < c.K ? slice * c.K + k : h * c.R + k - c.K) * c.D; };
        const Row row = attend(problem, b, h, m);
        r.logsumexp.add(slice * c.M + m, row.logsumexp);
        std::vector<double> grad(row.p.size(), 0.0);
        double delta = 0.0, delta_magnitude = 0.0;
        for (int64_t k = 0; k < c.K + c.R; ++k) {
          const double p = row.p[static_cast<std::size_t>(k)];
          if (p == 0.0) continue;
          double& dp = grad[static_cast<std::size_t>(k)];
          for (int64_t d = 0; d < c.D; ++d) {
            const double value = problem.value_at(b, h, k, d), dout = problem.grad_output.get(b, h, m, d);
            r.output.add(query + d, p * value);
            (k < c.K ? r.grad_value : r.grad_register_value).add(key_row(k) + d, p * dout);
            dp += dout * value;
          }
          if (k < c.K) {
            const int64_t cell = (b * c.K + k) * c.M + m;
            r.maps.add(cell, p / static_cast<double>(c.H));
            if (c.maps) dp += problem.grad_maps[static_cast<std::size_t>(cell)] / static_cast<double>(c.H);
          }
          delta += p * dp;
          delta_magnitude += p * std::fabs(dp);
        }
        r.grad_sinks.add(h, -row.sink * delta, row.sink * delta_magnitude);
        for (int64_t k = 0; k < c.K + c.R; ++k) {
          const double dp = grad[static_cast<std::size_t>(k)], factor = problem.scale * row.p[static_cast<std::size_t>(k)];
          if (factor == 0.0) continue;
          const double ds = factor * (dp - delta), magnitude = factor * (std::fabs(dp) + std::fabs(delta));
          for (int64_t d = 0; d < c.D; ++d) {
            const double key = problem.key_at(b, h, k, d), of_query = problem.query.get(b, h, m, d);
            r.grad_query.add(query + d, ds * key, magnitude * key);
            (k < c.K ? r.grad_key : r.grad_register_key).add(key_row(k) + d, ds * of_query, magnitude * of_query);
          }
        }
      }
  return r;
}

}  // namespace ocl::register_attention::test

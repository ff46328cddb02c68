// What the emulator tests of slot attention are about: cases, their tensors, and the results expected in float64.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "slot_attention/cuda/plan.h"
#include "tests/emulator/tensors.h"

namespace ocl::slot_attention::test {

using namespace ocl::test;

// ---- Cases

enum Wanted : unsigned { query = 1, key = 2, value = 4, everything = 7 };

struct Case {
  const char* what = "";
  Dtype dtype = Dtype::bfloat16;
  int64_t B = 2, H = 1, K = 7, N = 70, D = 64, E = 64;
  bool shared = false, eps_on_weights = true, attn = false, grad_attn = false;
  bool one_matrix = false;  // all heads read the same keys and values: head stride 0
  bool unchosen = false;    // no token chooses the first slot: its attention is 0 in float, eps alone weighs
  float eps = 1e-8f;
  Layout layout = Layout::heads_inside;
  unsigned wanted = Wanted::everything;
  double logits = 1.0;     // standard deviation of scale * query . key
  double scale = 1.0;      // times 1 / sqrt(D)
  double tolerance = 0.0;  // 0: by dtype
  double floor = 1e-2;     // errors are relative to the result, or to this share of the magnitudes that it sums where they cancel
  Device device = {};
};

inline std::string describe(const Case& c) {
  const char* types[] = {"float32", "bfloat16", "float16"};
  char text[256];
  std::snprintf(text, sizeof text, "%s: %s B=%d H=%d K=%d N=%d D=%d E=%d%s%s%s%s wanted=%u", c.what,
                types[static_cast<int>(c.dtype)], static_cast<int>(c.B), static_cast<int>(c.H), static_cast<int>(c.K),
                static_cast<int>(c.N), static_cast<int>(c.D), static_cast<int>(c.E), c.shared ? " shared" : "",
                c.eps_on_weights ? "" : " eps below", c.attn ? " attn" : "", c.grad_attn ? " grad_attn" : "", c.wanted);
  return text;
}

struct Problem {
  Case c;
  Tensor query, key, value, grad_updates;
  std::vector<float> grad_attn;
  float scale = 0;

  Problem(const Case& c_, unsigned seed) : c(c_) {
    std::mt19937 random(seed);
    const int64_t matrices = c.one_matrix ? 1 : c.H;
    query = Tensor(c.dtype, c.layout, c.B, c.H, c.K, c.D);
    key = Tensor(c.dtype, c.layout, c.B, matrices, c.N, c.D);
    if (!c.shared) value = Tensor(c.dtype, c.layout, c.B, matrices, c.N, c.E);
    grad_updates = Tensor(c.dtype, c.layout, c.B, c.H, c.K, c.E);
    scale = static_cast<float>(c.scale / std::sqrt(static_cast<double>(std::max<int64_t>(c.D, 1))));
    query.fill(random, c.logits);
    for (Tensor* tensor : {&key, &value, &grad_updates}) tensor->fill(random, 1.0);
    if (c.unchosen) push_away_first_slot();
    std::normal_distribution<float> normal(0.0f, 0.02f);
    if (c.grad_attn) {
      for (int64_t i = 0; i < c.B * c.H * c.K * c.N; ++i) grad_attn.push_back(normal(random));
    }
  }

  // The first column of keys and of the first slot lowers its logits by 300.
  void push_away_first_slot() {
    key.each([&](int64_t b, int64_t h, int64_t n, int64_t d) {
      if (d == 0) key.set(b, h, n, d, 1.0);
    });
    query.each([&](int64_t b, int64_t h, int64_t k, int64_t d) {
      if (d == 0) query.set(b, h, k, d, h == 0 && k == 0 ? -300.0 / scale : 0.0);
    });
  }

  int64_t matrix(int64_t head) const { return c.one_matrix ? 0 : head; }
  double key_at(int64_t b, int64_t h, int64_t n, int64_t d) const { return key.get(b, matrix(h), n, d); }
  double value_at(int64_t b, int64_t h, int64_t n, int64_t e) const { return (c.shared ? key : value).get(b, matrix(h), n, e); }

  SlotAttention in() {
    SlotAttention in;
    in.dtype = c.dtype;
    in.B = c.B, in.H = c.H, in.K = c.K, in.N = c.N, in.D = c.D, in.E = c.E;
    in.scale = scale, in.eps = c.eps, in.eps_on_weights = c.eps_on_weights, in.shared = c.shared;
    in.query = query.view(), in.key = key.view(), in.value = c.shared ? in.key : value.view();
    if (c.one_matrix) in.key.head = in.value.head = 0;
    return in;
  }
};

// ---- float64

// Tensors as [B, H, rows, width] in order. Gradients follow from the updates and totals that the forward gave, as promised.
struct Reference {
  Expected updates, total, attn, grad_query, grad_key, grad_value;
};

class Float64 {
 public:
  explicit Float64(const Problem& problem)
      : p_(problem), c_(problem.c), slots_(c_.H * c_.K), attn_(static_cast<std::size_t>(c_.B * slots_ * c_.N)) {
    for (int64_t b = 0; b < c_.B; ++b) {
      for (int64_t n = 0; n < c_.N; ++n) compete(b, n);
    }
  }

  void forward(Reference& r) const {
    r.updates = Expected(c_.B * slots_ * c_.E), r.total = Expected(c_.B * slots_), r.attn = Expected(c_.B * slots_ * c_.N);
    r.attn.value = attn_, r.attn.magnitude = attn_;
    for (int64_t b = 0; b < c_.B; ++b) {
      for (int64_t row = 0; row < slots_; ++row) {
        const double total = total_of(b, row);
        r.total.add(b * slots_ + row, total);
        for (int64_t n = 0; n < c_.N; ++n) {
          for (int64_t e = 0; e < c_.E; ++e) {
            r.updates.add((b * slots_ + row) * c_.E + e, weight(b, row, n) / total * p_.value_at(b, row / c_.K, n, e));
          }
        }
      }
    }
  }

  void backward(Reference& r, const Tensor& updates) const {
    r.grad_query = Expected(c_.B * slots_ * c_.D);
    r.grad_key = Expected(c_.B * c_.H * c_.N * c_.D), r.grad_value = Expected(c_.B * c_.H * c_.N * c_.E);
    const auto rows = static_cast<std::size_t>(slots_);
    std::vector<double> delta(rows), total(rows), grad(rows), size(rows);
    for (int64_t b = 0; b < c_.B; ++b) {
      for (int64_t row = 0; row < slots_; ++row) {
        const auto at = static_cast<std::size_t>(row);
        total[at] = total_of(b, row), delta[at] = 0.0;
        for (int64_t e = 0; e < c_.E; ++e) {
          delta[at] += p_.grad_updates.get(b, row / c_.K, row % c_.K, e) * updates.get(b, row / c_.K, row % c_.K, e);
        }
      }
      for (int64_t n = 0; n < c_.N; ++n) {
        double mean = 0.0, mean_size = 0.0;
        for (int64_t row = 0; row < slots_; ++row) {
          const auto at = static_cast<std::size_t>(row);
          double chosen = 0.0;
          for (int64_t e = 0; e < c_.E; ++e) {
            chosen += p_.grad_updates.get(b, row / c_.K, row % c_.K, e) * p_.value_at(b, row / c_.K, n, e);
          }
          const double given = c_.grad_attn ? p_.grad_attn[static_cast<std::size_t>((b * slots_ + row) * c_.N + n)] : 0.0;
          grad[at] = (chosen - delta[at]) / total[at] + given;
          size[at] = (std::fabs(chosen) + std::fabs(delta[at])) / total[at] + std::fabs(given);
          mean += attn(b, row, n) * grad[at], mean_size += attn(b, row, n) * size[at];
        }
        for (int64_t row = 0; row < slots_; ++row) {
          const auto at = static_cast<std::size_t>(row);
          const int64_t head = row / c_.K, token = (b * c_.H + head) * c_.N + n, slot = b * slots_ + row;
          const double factor = p_.scale * attn(b, row, n);
          const double logit = factor * (grad[at] - mean), logit_size = factor * (size[at] + mean_size);
          for (int64_t d = 0; d < c_.D; ++d) {
            const double key = p_.key_at(b, head, n, d), query = p_.query.get(b, head, row % c_.K, d);
            r.grad_query.add(slot * c_.D + d, logit * key, logit_size * key);
            r.grad_key.add(token * c_.D + d, logit * query, logit_size * query);
          }
          for (int64_t e = 0; e < c_.E; ++e) {
            const double share = weight(b, row, n) / total[at] * p_.grad_updates.get(b, head, row % c_.K, e);
            (c_.shared ? r.grad_key : r.grad_value).add(token * c_.E + e, share);
          }
        }
      }
    }
  }

 private:
  double& attn(int64_t b, int64_t row, int64_t n) { return attn_[static_cast<std::size_t>((b * slots_ + row) * c_.N + n)]; }
  double attn(int64_t b, int64_t row, int64_t n) const { return attn_[static_cast<std::size_t>((b * slots_ + row) * c_.N + n)]; }
  double weight(int64_t b, int64_t row, int64_t n) const { return attn(b, row, n) + (c_.eps_on_weights ? c_.eps : 0.0f); }

  double total_of(int64_t b, int64_t row) const {
    double total = c_.eps_on_weights ? 0.0 : c_.eps;
    for (int64_t n = 0; n < c_.N; ++n) total += weight(b, row, n);
    return total;
  }

  void compete(int64_t b, int64_t n) {
    double maximum = -std::numeric_limits<double>::infinity(), sum = 0.0;
    for (int64_t row = 0; row < slots_; ++row) {
      double dot = 0.0;
      for (int64_t d = 0; d < c_.D; ++d) dot += p_.query.get(b, row / c_.K, row % c_.K, d) * p_.key_at(b, row / c_.K, n, d);
      attn(b, row, n) = p_.scale * dot;
      maximum = std::max(maximum, attn(b, row, n));
    }
    for (int64_t row = 0; row < slots_; ++row) sum += std::exp(attn(b, row, n) - maximum);
    for (int64_t row = 0; row < slots_; ++row) attn(b, row, n) = std::exp(attn(b, row, n) - maximum) / sum;
  }

  const Problem& p_;
  const Case& c_;
  int64_t slots_;
  std::vector<double> attn_;
};

}  // namespace ocl::slot_attention::test

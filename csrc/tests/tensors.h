// What the tests of the attention kernels share: tensors of any dtype and strides with known bytes between the rows, loops in a
// given number of threads, and comparisons.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "ocl/view.h"

namespace testing {

inline std::string context;  // what is being checked, for CHECK

#define CHECK(condition)                                                                                           \
  do {                                                                                                             \
    if (!(condition)) {                                                                                            \
      std::fprintf(stderr, "%s:%d: %s is false: %s\n", __FILE__, __LINE__, #condition, testing::context.c_str()); \
      std::exit(1);                                                                                                \
    }                                                                                                              \
  } while (false)

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

inline const char* name_of(ocl::Dtype dtype) {
  return dtype == ocl::Dtype::float32 ? "float32" : dtype == ocl::Dtype::bfloat16 ? "bfloat16" : "float16";
}

inline double value_of(ocl::Dtype dtype, const uint8_t* bytes) {
  uint16_t half = 0;
  uint32_t word = 0;
  if (dtype == ocl::Dtype::float32) {
    std::memcpy(&word, bytes, 4);
  } else {
    std::memcpy(&half, bytes, 2);
    word = static_cast<uint32_t>(half) << 16;
  }
  if (dtype == ocl::Dtype::float16) {
    const int exponent = half >> 10 & 31, mantissa = half & 1023;
    double size = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(mantissa + 1024, exponent - 25);
    if (exponent == 31) size = mantissa == 0 ? kInfinity : kNan;
    return half >> 15 ? -size : size;
  }
  float value = 0;
  std::memcpy(&value, &word, 4);
  return value;
}

inline void set_value(ocl::Dtype dtype, double value, uint8_t* bytes) {
  const auto single = static_cast<float>(value);
  if (dtype == ocl::Dtype::float32) return void(std::memcpy(bytes, &single, 4));
  uint32_t word = 0;
  std::memcpy(&word, &single, 4);
  uint16_t half = static_cast<uint16_t>((word + (std::isnan(single) ? 0 : 0x7fff + (word >> 16 & 1))) >> 16);
  if (dtype == ocl::Dtype::float16) {
    half = static_cast<uint16_t>(std::signbit(single) ? 0x8000 : 0);
    if (std::isnan(single)) {
      half |= 0x7e00;
    } else if (std::isinf(single)) {
      half |= 0x7c00;
    } else if (single != 0.0f) {
      const int exponent = std::max(std::ilogb(single), -14);
      const auto units = static_cast<int>(std::nearbyint(std::ldexp(std::abs(value), 10 - exponent)));  // 1024 .. 2048, or less
      half = static_cast<uint16_t>(half + units + (exponent + 14) * 1024);
    }
  }
  std::memcpy(bytes, &half, 2);
}

enum class Order { heads_first, rows_first, padded, shared_batch };

// [B, H, N, D]. heads_first: contiguous; rows_first: [B, N, H, D] in memory; padded: gaps of 3 elements after each row and 5 after
// each head; shared_batch: one image for all (batch stride 0).
class Tensor {
 public:
  Tensor() = default;
  Tensor(ocl::Dtype dtype, int64_t B, int64_t H, int64_t N, int64_t D, Order order) : dtype_(dtype), B_(B), H_(H), N_(N), D_(D) {
    view_.row = order == Order::rows_first ? H * D : order == Order::padded ? D + 3 : D;
    view_.head = order == Order::rows_first ? D : N * view_.row + (order == Order::padded ? 5 : 0);
    view_.batch = order == Order::shared_batch ? 0 : order == Order::rows_first ? N * H * D : H * view_.head;
    const int64_t size = order == Order::shared_batch ? H * view_.head : B * view_.batch;
    bytes_.assign(static_cast<std::size_t>(size * width()), 0xa5);
  }

  // Without elements the data pointer is null, as in an empty tensor of a framework.
  ocl::View view() {
    ocl::View view = view_;
    view.data = bytes_.data();
    return view;
  }

  double get(int64_t b, int64_t h, int64_t i, int64_t d) const { return value_of(dtype_, bytes_.data() + offset(b, h, i, d)); }
  void set(int64_t b, int64_t h, int64_t i, int64_t d, double value) { set_value(dtype_, value, bytes_.data() + offset(b, h, i, d)); }

  void fill(std::mt19937& random, double deviation) {
    std::normal_distribution<double> normal(0, deviation);
    each([&](int64_t b, int64_t h, int64_t i, int64_t d) { set(b, h, i, d, normal(random)); });
  }

  // Nothing was written between the rows.
  bool gaps_untouched() const {
    std::vector<uint8_t> inside(bytes_.size(), 0);
    each([&](int64_t b, int64_t h, int64_t i, int64_t d) {
      std::fill_n(inside.begin() + static_cast<std::ptrdiff_t>(offset(b, h, i, d)), width(), uint8_t{1});
    });
    for (std::size_t i = 0; i < bytes_.size(); ++i) {
      if (inside[i] == 0 && bytes_[i] != 0xa5) return false;
    }
    return true;
  }

  template <class Use>
  void each(const Use& use) const {
    for (int64_t b = 0; b < B_; ++b)
      for (int64_t h = 0; h < H_; ++h)
        for (int64_t i = 0; i < N_; ++i)
          for (int64_t d = 0; d < D_; ++d) use(b, h, i, d);
  }

  std::vector<double> values() const {
    std::vector<double> all;
    each([&](int64_t b, int64_t h, int64_t i, int64_t d) { all.push_back(get(b, h, i, d)); });
    return all;
  }

  std::vector<double> image(int64_t b) const {
    const std::vector<double> all = values();
    const int64_t size = H_ * N_ * D_;
    return std::vector<double>(all.begin() + b * size, all.begin() + (b + 1) * size);
  }

 private:
  int64_t width() const { return dtype_ == ocl::Dtype::float32 ? 4 : 2; }
  std::size_t offset(int64_t b, int64_t h, int64_t i, int64_t d) const {
    return static_cast<std::size_t>((b * view_.batch + h * view_.head + i * view_.row + d) * width());
  }

  ocl::Dtype dtype_ = ocl::Dtype::float32;
  int64_t B_ = 0, H_ = 0, N_ = 0, D_ = 0;
  ocl::View view_;
  std::vector<uint8_t> bytes_;
};

inline void serial(int64_t size, const std::function<void(int64_t, int64_t)>& body) {
  if (size > 0) body(0, size);
}

inline ocl::ParallelFor threads(int64_t count) {
  return [count](int64_t size, const std::function<void(int64_t, int64_t)>& body) {
    std::vector<std::thread> running;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t first = size * i / count, last = size * (i + 1) / count;
      if (first < last) running.emplace_back([&body, first, last] { body(first, last); });
    }
    for (std::thread& thread : running) thread.join();
  };
}

// |got - expected| <= relative * |expected| in the norm of the whole tensor, where `per_element` is added to |expected| for each
// element, since a small gradient is a difference of larger numbers. Equal infinities count as equal.
inline bool close(const std::vector<double>& got, const std::vector<double>& expected, double relative, double per_element = 0.05) {
  if (got.size() != expected.size()) return false;
  double error = 0, size = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (std::isinf(got[i]) && got[i] == expected[i]) continue;
    error += (got[i] - expected[i]) * (got[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  const double bound = relative * (std::sqrt(size) + per_element * std::sqrt(static_cast<double>(got.size())));
  const bool is_close = std::sqrt(error) <= bound;
  if (!is_close) std::fprintf(stderr, "error %g of %g, bound %g\n", std::sqrt(error), std::sqrt(size), bound);
  return is_close;
}

// The same bits, or both NaN.
inline bool same(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i] != b[i] && !(std::isnan(a[i]) && std::isnan(b[i]))) return false;
  }
  return true;
}

inline bool all_finite(const std::vector<double>& values) {
  return std::all_of(values.begin(), values.end(), [](double value) { return std::isfinite(value); });
}

inline bool all_zero(const std::vector<double>& values) {
  return std::all_of(values.begin(), values.end(), [](double value) { return value == 0; });
}

}  // namespace testing

// What the emulator tests of both attention operators share: tensors of any layout, results expected in float64, and errors.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "ocl/cuda/simt.h"
#include "ocl/view.h"

namespace ocl::test {

using simt::bfloat16;
using simt::float16;

enum class Layout {
  heads_inside,   // [B, M, H, D] in memory, as diffusers has it
  heads_outside,  // [B, H, M, D]
  padded,         // heads inside, with gaps of 8 elements
  odd             // heads inside, with gaps of 3 elements: no 16-byte pieces
};

class Tensor {
 public:
  Tensor() = default;
  // [batch, heads, rows, width]; without a batch where `shared`.
  Tensor(Dtype dtype, Layout layout, int64_t batch, int64_t heads, int64_t rows, int64_t width)
      : dtype_(dtype), batch_(batch), heads_(heads), rows_(rows), width_(width) {
    const int64_t gap = layout == Layout::padded ? 8 : layout == Layout::odd ? 3 : 0;
    if (layout == Layout::heads_outside) {
      row_ = width, head_ = rows * width, image_ = heads * rows * width;
    } else {
      head_ = width + gap, row_ = heads * (width + gap) + gap, image_ = rows * row_;
    }
    // Exactly as long as needed, for the address sanitizer.
    const int64_t last =
        batch * heads * rows * width == 0 ? 0 : (batch - 1) * image_ + (heads - 1) * head_ + (rows - 1) * row_ + width;
    bytes_.assign(static_cast<std::size_t>(last * item()), 0xFF);
  }

  View view() { return {bytes_.data(), image_, head_, row_}; }
  int64_t size() const { return batch_ * heads_ * rows_ * width_; }

  double get(int64_t b, int64_t h, int64_t m, int64_t d) const {
    const unsigned char* address = bytes_.data() + offset(b, h, m, d);
    if (dtype_ == Dtype::float32) return load<float>(address);
    if (dtype_ == Dtype::bfloat16) return simt::to_float(load<bfloat16>(address));
    return simt::to_float(load<float16>(address));
  }

  void set(int64_t b, int64_t h, int64_t m, int64_t d, double number) {
    unsigned char* address = bytes_.data() + offset(b, h, m, d);
    const auto value = static_cast<float>(number);
    if (dtype_ == Dtype::float32) return store(address, value);
    if (dtype_ == Dtype::bfloat16) return store(address, simt::from_float<bfloat16>(value));
    store(address, simt::from_float<float16>(value));
  }

  void fill(std::mt19937& random, double deviation) {
    std::normal_distribution<double> normal(0.0, deviation);
    each([&](int64_t b, int64_t h, int64_t m, int64_t d) { set(b, h, m, d, normal(random)); });
  }

  template <class Visit>
  void each(const Visit& visit) const {
    for (int64_t b = 0; b < batch_; ++b)
      for (int64_t h = 0; h < heads_; ++h)
        for (int64_t m = 0; m < rows_; ++m)
          for (int64_t d = 0; d < width_; ++d) visit(b, h, m, d);
  }

  // Whether the bytes between rows are still poison.
  bool gaps_untouched() const {
    std::vector<unsigned char> left = bytes_;
    each([&](int64_t b, int64_t h, int64_t m, int64_t d) {
      std::memset(left.data() + offset(b, h, m, d), 0xFF, static_cast<std::size_t>(item()));
    });
    for (const unsigned char byte : left) {
      if (byte != 0xFF) return false;
    }
    return true;
  }

  const std::vector<unsigned char>& bytes() const { return bytes_; }

 private:
  int64_t item() const { return dtype_ == Dtype::float32 ? 4 : 2; }
  std::size_t offset(int64_t b, int64_t h, int64_t m, int64_t d) const {
    return static_cast<std::size_t>((b * image_ + h * head_ + m * row_ + d) * item());
  }
  template <class T>
  static T load(const unsigned char* address) {
    T value;
    std::memcpy(&value, address, sizeof value);
    return value;
  }
  template <class T>
  static void store(unsigned char* address, T value) {
    std::memcpy(address, &value, sizeof value);
  }

  Dtype dtype_ = Dtype::float32;
  int64_t batch_ = 0, heads_ = 0, rows_ = 0, width_ = 0, image_ = 0, head_ = 0, row_ = 0;
  std::vector<unsigned char> bytes_;
};

inline std::vector<float> poisoned_floats(int64_t size) {
  std::vector<float> floats(static_cast<std::size_t>(size));
  if (size > 0) std::memset(floats.data(), 0xFF, floats.size() * sizeof(float));
  return floats;
}

// ---- float64

// A result, and the sum of the magnitudes of its terms.
struct Expected {
  std::vector<double> value, magnitude;

  explicit Expected(int64_t size = 0) : value(static_cast<std::size_t>(size), 0.0), magnitude(value) {}
  void add(int64_t index, double term, double term_magnitude) {
    value[static_cast<std::size_t>(index)] += term;
    magnitude[static_cast<std::size_t>(index)] += std::fabs(term_magnitude);
  }
  void add(int64_t index, double term) { add(index, term, term); }
};

// ---- Comparison

// Root mean square of the difference, relative to that of what is expected, or to `floor` times
// that of the magnitudes which it sums, where they cancel; infinite where a number is missing.
class Error {
 public:
  Error(const Expected& expected, double floor) : expected_(expected), floor_(floor) {}

  void add(double got) {
    const double value = expected_.value[next_], magnitude = expected_.magnitude[next_];
    ++next_;
    if (std::isinf(value) && got == value) return;
    difference_ += (got - value) * (got - value);
    size_ += value * value;
    magnitude_ += magnitude * magnitude;
  }

  double relative() const {
    if (!(difference_ < std::numeric_limits<double>::infinity())) return std::numeric_limits<double>::infinity();
    return difference_ == 0.0 ? 0.0 : std::sqrt(difference_ / std::max(size_, floor_ * floor_ * magnitude_));
  }

 private:
  const Expected& expected_;
  double floor_;
  std::size_t next_ = 0;
  double difference_ = 0.0, size_ = 0.0, magnitude_ = 0.0;
};

inline double error_of(const Tensor& got, const Expected& expected, double floor) {
  Error error(expected, floor);
  got.each([&](int64_t b, int64_t h, int64_t m, int64_t d) { error.add(got.get(b, h, m, d)); });
  return got.gaps_untouched() ? error.relative() : std::numeric_limits<double>::infinity();
}

inline double error_of(const std::vector<float>& got, const Expected& expected, double floor) {
  Error error(expected, floor);
  for (const float number : got) error.add(number);
  return error.relative();
}

}  // namespace ocl::test

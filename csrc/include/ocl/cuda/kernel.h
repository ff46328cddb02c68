// Small things that kernels share: lanes and sums of a warp, rows of a View.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "ocl/cuda/simt.h"
#include "ocl/view.h"

namespace ocl::simt {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float log2_e = 1.4426950408889634f;

OCL_DEVICE int lane_index() { return thread_index() % 32; }
OCL_DEVICE int warp_index() { return thread_index() / 32; }

OCL_DEVICE float warp_sum(float value) {
  OCL_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

OCL_DEVICE float warp_maximum(float value) {
  OCL_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) value = fmaxf(value, shuffle_xor(value, mask));
  return value;
}

// The rows of one image and head.
template <class T>
OCL_DEVICE T* slice_of(const View& view, int image, int head) {
  return static_cast<T*>(view.data) + image * view.batch + head * view.head;
}

// The same as [rows, columns], whose numbers are read as float.
template <class T>
struct Matrix {
  T* data;
  int64_t stride;

  OCL_DEVICE Matrix(const View& view, int image, int head) : data(slice_of<T>(view, image, head)), stride(view.row) {}
  OCL_DEVICE T& at(int row, int column) const { return data[row * stride + column]; }
  OCL_DEVICE float operator()(int row, int column) const { return to_float(at(row, column)); }
};

}  // namespace ocl::simt

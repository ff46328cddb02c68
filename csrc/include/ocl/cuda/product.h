// Matrix products by one block of 128 threads with plain multiply-adds, for any type, size and stride:
//   C[i][j] = sum over k of A[k][i] B[k][j]   for rows x columns elements of C, 4 columns of some rows per thread
// Slices of 32 k are staged in shared memory as float; the caller says where elements come from and where sums go.
#pragma once

#include "ocl/cuda/kernel.h"

namespace ocl::simt {

constexpr int product_threads = 128, product_depth = 32;

template <int count>
struct alignas(4 * count) Floats {
  float of[count];
};

template <int rows, int columns>
struct BlockProduct {
  static constexpr int threads_across = columns / 4, thread_rows = rows * threads_across / product_threads;
  static constexpr int row_stride = rows + 4, column_stride = columns + 4;  // padded, 16-byte aligned
  static constexpr int shared_floats = product_depth * (row_stride + column_stride);
  static_assert(thread_rows == 2 || thread_rows == 4, "a thread reads its rows of A at once");

  float* staged_a;  // [depth][row_stride]
  float* staged_b;  // [depth][column_stride]

  OCL_DEVICE explicit BlockProduct(float* shared) : staged_a(shared), staged_b(shared + product_depth * row_stride) {}

  // staged[k][i] = element(i, k). Neighbouring threads take neighbouring k where memory runs along k, else neighbouring i.
  template <int size, int stride, bool along_depth, class Element>
  OCL_DEVICE static void stage(float* staged, int valid, int first_k, int depth, const Element& element) {
    for (int t = thread_index(); t < size * product_depth; t += product_threads) {
      const int k = along_depth ? t % product_depth : t / size, i = along_depth ? t / product_depth : t % size;
      staged[k * stride + i] = i < valid && first_k + k < depth ? element(i, first_k + k) : 0.0f;
    }
  }

  // sink(i, j, sum over k < depth of a(i, k) b(j, k)) for i < valid_rows, j < valid_columns, each always in the same thread.
  // Begins with a barrier, but does not end with one.
  template <bool a_along_depth, bool b_along_depth, class A, class B, class Sink>
  OCL_DEVICE void multiply(int valid_rows, int valid_columns, int depth, const A& a, const B& b, const Sink& sink) const {
    const int thread_row = thread_index() / threads_across * thread_rows, thread_column = thread_index() % threads_across * 4;
    float sum[thread_rows][4] = {};
    for (int first_k = 0; first_k < depth; first_k += product_depth) {
      sync_threads();
      stage<rows, row_stride, a_along_depth>(staged_a, valid_rows, first_k, depth, a);
      stage<columns, column_stride, b_along_depth>(staged_b, valid_columns, first_k, depth, b);
      sync_threads();
      OCL_NO_UNROLL
      for (int eight = 0; eight < product_depth && first_k + eight < depth; eight += 8) {
        OCL_UNROLL
        for (int k = eight; k < eight + 8; ++k) {
          const auto left = *reinterpret_cast<const Floats<thread_rows>*>(staged_a + k * row_stride + thread_row);
          const auto right = *reinterpret_cast<const Floats<4>*>(staged_b + k * column_stride + thread_column);
          OCL_UNROLL
          for (int i = 0; i < thread_rows; ++i) {
            OCL_UNROLL
            for (int j = 0; j < 4; ++j) sum[i][j] += left.of[i] * right.of[j];
          }
        }
      }
    }
    OCL_UNROLL
    for (int i = 0; i < thread_rows; ++i) {
      OCL_UNROLL
      for (int j = 0; j < 4; ++j) {
        if (thread_row + i < valid_rows && thread_column + j < valid_columns) sink(thread_row + i, thread_column + j, sum[i][j]);
      }
    }
  }
};

}  // namespace ocl::simt

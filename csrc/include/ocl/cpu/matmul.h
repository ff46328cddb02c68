// C = A B or C += A B, the one product that the attention kernels are made of, in fp32 with the sums in registers:
//   C[row][column] = sum over products, over steps of A[row][step] * B[step][column]
// A is read one element at a time and may have any strides (so A transposed is A with other strides); B and C consist of
// vectors of kLanes columns. Sums run over the steps in order, whatever the sizes of the tiles: a row's result does not depend on
// the rows beside it. Fast where B's group of kTileVectors vectors stays in the first-level cache, that is up to about 200 steps.
#pragma once

#include "ocl/cpu/vector.h"

namespace ocl {
namespace {

struct Left {
  const float* data;  // A[row][step] = data[row * this->row + step * this->step]
  int64_t row;
  int64_t step;
};

struct Right {
  const float* data;  // B[step][vector] = kLanes floats at data[step * this->step + vector * this->vector]
  int64_t step;
  int64_t vector;
};

struct Product {
  Left left;
  Right right;
  int64_t steps;
};

// C[row][vector] = kLanes floats at data[row * this->row + vector * kLanes].
struct Sums {
  float* data;
  int64_t row;
  bool add;  // to what is there; otherwise it is overwritten
};

// A tile of 4 rows x 3 vectors fills the 16 registers of SSE and AVX2 (12 sums, 3 vectors of B, 1 element of A), 4 x 6 the 32 of
// AVX-512 and hides the latency of two fused multiply-adds per cycle. A single vector takes 8 rows for the same reason.
constexpr int64_t kTileRows = 4;
constexpr int64_t kTileVectors = OCL_VECTOR_BYTES == 64 ? 6 : 3;

template <int kRows, int kVectors>
__attribute__((noinline)) void multiply_tile(const Product* products, int64_t num_products, Sums sums) {
  Floats sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
    for (int vector = 0; vector < kVectors; ++vector) {
      sum[row][vector] = Floats{};
    }
  }
  for (const Product* product = products; product < products + num_products; ++product) {
    const float* left = product->left.data;
    const float* right = product->right.data;
    const int64_t left_row = product->left.row, left_step = product->left.step;
    const int64_t right_vector = product->right.vector, right_step = product->right.step;
    for (int64_t step = 0; step < product->steps; ++step, left += left_step, right += right_step) {
      Floats b[kVectors];
#pragma GCC unroll 8
      for (int vector = 0; vector < kVectors; ++vector) b[vector] = load(right + vector * right_vector);
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        const Floats a = broadcast(left[row * left_row]);
#pragma GCC unroll 8
        for (int vector = 0; vector < kVectors; ++vector) sum[row][vector] = a * b[vector] + sum[row][vector];
      }
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
    for (int vector = 0; vector < kVectors; ++vector) {
      float* to = sums.data + row * sums.row + vector * kLanes;
      store(to, sums.add ? load(to) + sum[row][vector] : sum[row][vector]);
    }
  }
}

template <int kRows>
OCL_INLINE void multiply_tile(int64_t vectors, const Product* products, int64_t num_products, Sums sums) {
  switch (vectors) {
    case 1: return multiply_tile<kRows, 1>(products, num_products, sums);
    case 2: return multiply_tile<kRows, 2>(products, num_products, sums);
    case 3: return multiply_tile<kRows, 3>(products, num_products, sums);
#if OCL_VECTOR_BYTES == 64
    case 4: return multiply_tile<kRows, 4>(products, num_products, sums);
    case 5: return multiply_tile<kRows, 5>(products, num_products, sums);
    case 6: return multiply_tile<kRows, 6>(products, num_products, sums);
#endif
  }
}

// `rows` is a multiple of kTileRows. The products (one or two) are added up in order: keys that lie in two panels, say.
template <int kProducts>
OCL_INLINE void multiply(const Product (&products)[kProducts], int64_t rows, int64_t vectors, Sums sums) {
  const int64_t groups = (vectors + kTileVectors - 1) / kTileVectors;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t first = vectors * group / groups, width = vectors * (group + 1) / groups - first;
    Product tile[kProducts];
    for (int i = 0; i < kProducts; ++i) {
      tile[i] = products[i];
      tile[i].right.data += first * tile[i].right.vector;
    }
    Sums tile_sums = sums;
    tile_sums.data += first * kLanes;
    for (int64_t row = 0; row < rows;) {
      const int64_t height = width == 1 && rows - row >= 2 * kTileRows ? 2 * kTileRows : kTileRows;
      if (height == 2 * kTileRows) {
        multiply_tile<2 * kTileRows, 1>(tile, kProducts, tile_sums);
      } else {
        multiply_tile<kTileRows>(width, tile, kProducts, tile_sums);
      }
      for (Product& product : tile) product.left.data += height * product.left.row;
      tile_sums.data += height * sums.row;
      row += height;
    }
  }
}

OCL_INLINE void multiply(const Product& product, int64_t rows, int64_t vectors, Sums sums) {
  const Product products[1] = {product};
  multiply(products, rows, vectors, sums);
}

}  // namespace
}  // namespace ocl

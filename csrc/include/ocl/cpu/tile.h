// Products of bfloat16 matrices with sums in fp32, on tiles of 16 rows x 64 bytes as AMX has them (TDPBF16PS in Intel's manual):
//   C[row][column] += sum over 32 steps of A[row][step] * B[step][column]
// A has 16 rows of 32 bfloat16. B has 16 rows of 16 pairs: row i holds steps 2i and 2i + 1 of each column side by side. C has 16
// rows of 16 floats. HardwareTiles are the processor's registers, SoftwareTiles a plain copy of them, with which the kernels
// are tested on any machine. For vectors of 64 bytes: a row of a tile is a vector.
#pragma once

#include "ocl/cpu/convert.h"

namespace ocl {
namespace {

constexpr int64_t kTileSize = 16;   // rows; columns of C; pairs of steps
constexpr int64_t kTileSteps = 32;  // bfloat16 in a row of A

#if defined(OCL_TARGET_AMX)
// Statements in assembly, since the intrinsics of some compilers take only literals for tile numbers. "memory" keeps what
// is written before a tile is loaded from moving behind it.
class HardwareTiles {
 public:
  static constexpr int64_t kSteps = kTileSteps, kRows = kTileSize;  // that a product takes at once
  HardwareTiles() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
  }
  HardwareTiles(const HardwareTiles&) = delete;
  HardwareTiles& operator=(const HardwareTiles&) = delete;
  ~HardwareTiles() { __asm__ volatile("tilerelease"); }

  template <int kTile>
  void zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
  }
  template <int kTile>
  void load(const void* from, int64_t row_bytes) {
    __asm__ volatile("{tileloadd (%0,%1,1), %%tmm%c2|tileloadd tmm%c2, [%0+%1*1]}"
                     :
                     : "r"(from), "r"(row_bytes), "i"(kTile)
                     : "memory");
  }
  template <int kTile>
  void store(void* to, int64_t row_bytes) {
    __asm__ volatile("{tilestored %%tmm%c2, (%0,%1,1)|tilestored [%0+%1*1], tmm%c2}"
                     :
                     : "r"(to), "r"(row_bytes), "i"(kTile)
                     : "memory");
  }
  template <int kSums, int kLeft, int kRight>
  void multiply() {
    __asm__ volatile("{tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0|tdpbf16ps tmm%c0, tmm%c1, tmm%c2}"
                     :
                     : "i"(kSums), "i"(kLeft), "i"(kRight));
  }
};
#endif

class SoftwareTiles {
 public:
  static constexpr int64_t kSteps = kTileSteps, kRows = kTileSize;
  template <int kTile>
  void zero() {
    std::memset(tiles_[kTile], 0, sizeof tiles_[kTile]);
  }
  template <int kTile>
  void load(const void* from, int64_t row_bytes) {
    const char* rows = static_cast<const char*>(from);
    for (int64_t row = 0; row < kTileSize; ++row) std::memcpy(tiles_[kTile][row], rows + row * row_bytes, 64);
  }
  template <int kTile>
  void store(void* to, int64_t row_bytes) {
    char* rows = static_cast<char*>(to);
    for (int64_t row = 0; row < kTileSize; ++row) std::memcpy(rows + row * row_bytes, tiles_[kTile][row], 64);
  }
  template <int kSums, int kLeft, int kRight>
  void multiply() {
    for (int64_t row = 0; row < kTileSize; ++row) {
      for (int64_t column = 0; column < kTileSize; ++column) {
        float sum = bit_cast<float>(tiles_[kSums][row][column]);
        for (int64_t pair = 0; pair < kTileSize; ++pair) {
          const uint32_t left = tiles_[kLeft][row][pair], right = tiles_[kRight][pair][column];
          sum += bit_cast<float>(left << 16) * bit_cast<float>(right << 16);
          sum += bit_cast<float>(left & 0xffff0000) * bit_cast<float>(right & 0xffff0000);
        }
        tiles_[kSums][row][column] = bit_cast<uint32_t>(sum);
      }
    }
  }

 private:
  uint32_t tiles_[8][kTileSize][kTileSize];
};

// One product of multiply_tiles; strides in elements.
struct TileProduct {
  const BFloat16* left;  // A[row][step] = left[row * left_row + step]
  int64_t left_row;
  const BFloat16* right;  // B: pair of steps p, column c at right[p * right_row + 2 * c]
  int64_t right_row;
  int64_t steps;  // multiple of Tiles::kSteps
};

struct TileSums {
  float* data;  // C[row][column] = data[row * this->row + column]
  int64_t row;
  bool add;  // to what is there
};

// 16 rows times kTiles tiles of columns; the products are added up in order. Tiles 0 to 5 hold sums, 6 a tile of A, 7 one of B.
template <int kTiles, class Tiles>
inline void multiply_tile_row(Tiles& tiles, const TileProduct* products, int64_t num_products, TileSums sums) {
  const auto each = [](const auto& use) {  // use(0), ... as constants
    use(std::integral_constant<int, 0>());
    if constexpr (kTiles > 1) use(std::integral_constant<int, 1>());
    if constexpr (kTiles > 2) use(std::integral_constant<int, 2>());
    if constexpr (kTiles > 3) use(std::integral_constant<int, 3>());
    if constexpr (kTiles > 4) use(std::integral_constant<int, 4>());
    if constexpr (kTiles > 5) use(std::integral_constant<int, 5>());
  };
  each([&](auto tile) {
    if (sums.add) {
      tiles.template load<tile>(sums.data + tile * kTileSize, sums.row * 4);
    } else {
      tiles.template zero<tile>();
    }
  });
  for (const TileProduct* product = products; product < products + num_products; ++product) {
    for (int64_t step = 0; step < product->steps; step += kTileSteps) {
      const BFloat16* right = product->right + step / 2 * product->right_row;
      tiles.template load<6>(product->left + step, product->left_row * 2);
      each([&](auto tile) {
        tiles.template load<7>(right + tile * kTileSteps, product->right_row * 2);
        tiles.template multiply<tile, 6, 7>();
      });
    }
  }
  each([&](auto tile) { tiles.template store<tile>(sums.data + tile * kTileSize, sums.row * 4); });
}

// `rows` and `columns` are multiples of kTileSize.
template <int kProducts, class Tiles>
inline void multiply_tiles(Tiles& tiles, const TileProduct (&products)[kProducts], int64_t rows, int64_t columns, TileSums sums) {
  constexpr int64_t kMost = 6 * kTileSize;
  for (int64_t row = 0; row < rows; row += kTileSize) {
    for (int64_t column = 0; column < columns; column += kMost) {
      TileProduct group[kProducts];
      for (int i = 0; i < kProducts; ++i) {
        group[i] = products[i];
        group[i].left += row * group[i].left_row;
        group[i].right += 2 * column;
      }
      const TileSums to = {sums.data + row * sums.row + column, sums.row, sums.add};
      switch (std::min(columns - column, kMost) / kTileSize) {
        case 1: multiply_tile_row<1>(tiles, group, kProducts, to); break;
        case 2: multiply_tile_row<2>(tiles, group, kProducts, to); break;
        case 3: multiply_tile_row<3>(tiles, group, kProducts, to); break;
        case 4: multiply_tile_row<4>(tiles, group, kProducts, to); break;
        case 5: multiply_tile_row<5>(tiles, group, kProducts, to); break;
        default: multiply_tile_row<6>(tiles, group, kProducts, to);
      }
    }
  }
}

// ---- the same products without tiles

OCL_INLINE Bits load_words(const void* from) {
  Bits words;
  std::memcpy(&words, from, sizeof words);
  return words;
}

OCL_INLINE void store_words(void* to, Bits words) { std::memcpy(to, &words, sizeof words); }

// Stands for tiles where there are none: AVX-512 BF16 multiplies vectors of pairs (VDPBF16PS), with the sums in its registers.
struct VectorsOfPairs {
  static constexpr int64_t kSteps = 2, kRows = 8;
};

// sum + the products of the low halves + the products of the high halves, per lane.
OCL_INLINE Floats add_products(Floats sum, Bits left, Bits right) {
#if defined(OCL_TARGET_AVX512_BF16)
  return bit_cast<Floats>(_mm512_dpbf16_ps(bit_cast<__m512>(sum), bit_cast<__m512bh>(left), bit_cast<__m512bh>(right)));
#else
  sum += bit_cast<Floats>(left << 16) * bit_cast<Floats>(right << 16);
  return sum + bit_cast<Floats>(left & 0xffff0000) * bit_cast<Floats>(right & 0xffff0000);
#endif
}

OCL_INLINE Bits broadcast_pair(const BFloat16* from) {
  uint32_t pair;
  std::memcpy(&pair, from, sizeof pair);
  return pair - Bits{};
}

// kRows rows times kVectors vectors of columns; the products are added up in order.
template <int kRows, int kVectors>
__attribute__((noinline)) void multiply_pairs(const TileProduct* products, int64_t num_products, TileSums sums) {
  Floats sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
    for (int vector = 0; vector < kVectors; ++vector) {
      sum[row][vector] = sums.add ? load(sums.data + row * sums.row + vector * kLanes) : Floats{};
    }
  }
  for (const TileProduct* product = products; product < products + num_products; ++product) {
    const BFloat16* left = product->left;
    const BFloat16* right = product->right;
    const int64_t left_row = product->left_row, right_row = product->right_row;
    for (int64_t step = 0; step < product->steps; step += 2, left += 2, right += right_row) {
      Bits b[kVectors];
#pragma GCC unroll 8
      for (int vector = 0; vector < kVectors; ++vector) b[vector] = load_words(right + vector * kTileSteps);
#pragma GCC unroll 16
      for (int row = 0; row < kRows; ++row) {
        const Bits a = broadcast_pair(left + row * left_row);
#pragma GCC unroll 8
        for (int vector = 0; vector < kVectors; ++vector) sum[row][vector] = add_products(sum[row][vector], a, b[vector]);
      }
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
    for (int vector = 0; vector < kVectors; ++vector) store(sums.data + row * sums.row + vector * kLanes, sum[row][vector]);
  }
}

// `rows` is a multiple of kRows, `columns` of kLanes. 8 rows x 3 vectors fill the registers (24 sums, 3 of B, 1 pair of A) and read
// each of B once for 8 rows: panels are larger than the first-level cache. A single vector takes 16 rows where there are so many, so
// that enough sums hide the latency of a product.
template <int kProducts>
inline void multiply_tiles(VectorsOfPairs&, const TileProduct (&products)[kProducts], int64_t rows, int64_t columns,
                           TileSums sums) {
  constexpr int64_t kMost = 3, kRows = VectorsOfPairs::kRows;
  const int64_t vectors = columns / kLanes, groups = (vectors + kMost - 1) / kMost;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t first = vectors * group / groups, width = vectors * (group + 1) / groups - first;
    for (int64_t row = 0; row < rows;) {
      TileProduct part[kProducts];
      for (int i = 0; i < kProducts; ++i) {
        part[i] = products[i];
        part[i].left += row * part[i].left_row;
        part[i].right += first * kTileSteps;
      }
      const TileSums to = {sums.data + row * sums.row + first * kLanes, sums.row, sums.add};
      const int64_t height = width == 1 && rows - row >= 2 * kRows ? 2 * kRows : kRows;
      if (width == 3) {
        multiply_pairs<kRows, 3>(part, kProducts, to);
      } else if (width == 2) {
        multiply_pairs<kRows, 2>(part, kProducts, to);
      } else if (height == kRows) {
        multiply_pairs<kRows, 1>(part, kProducts, to);
      } else {
        multiply_pairs<2 * kRows, 1>(part, kProducts, to);
      }
      row += height;
    }
  }
}

// ---- making A and B

// Words of two rows side by side: a[i] in the low half, b[i] in the high half, for 16 elements of each: a row of B.
OCL_INLINE Bits pairs(Halves a, Halves b) { return widen_bits(a) | (widen_bits(b) << 16); }

template <int64_t kDistance>
OCL_INLINE void swap_lanes(Bits (&rows)[kLanes]) {
#pragma GCC unroll 16
  for (int64_t i = 0; i < kLanes; ++i) {
    if ((i & kDistance) == 0) swap_lanes<kDistance>(rows[i], rows[i + kDistance]);
  }
}

// rows[i][j] = rows[j][i], for 16 rows of 16 words.
OCL_INLINE void transpose(Bits (&rows)[kLanes]) {
  static_assert(kLanes == 16);
  swap_lanes<1>(rows);
  swap_lanes<2>(rows);
  swap_lanes<4>(rows);
  swap_lanes<8>(rows);
}

}  // namespace
}  // namespace ocl

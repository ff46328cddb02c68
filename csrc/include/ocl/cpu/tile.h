// Products of bfloat16 matrices with sums in fp32, on tiles of 16 rows x 64 bytes as AMX has them (Intel's manual, volume 2, TDPBF16PS):
//   C[row][column] += sum over 32 steps of A[row][step] * B[step][column]
// A has 16 rows of 32 bfloat16. B has 16 rows of 16 pairs: row i holds steps 2i and 2i + 1 of each column side by side. C has 16
// rows of 16 floats. HardwareTiles are the processor's registers, SoftwareTiles a plain copy of them, with which the kernels
// are tested on any machine.
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
    __asm__ volatile("{tileloadd (%0,%1,1), %%tmm%c2|tileloadd tmm%c2, [%0+%1*1]}" : : "r"(from), "r"(row_bytes), "i"(kTile) : "memory");
  }
  template <int kTile>
  void store(void* to, int64_t row_bytes) {
    __asm__ volatile("{tilestored %%tmm%c2, (%0,%1,1)|tilestored [%0+%1*1], tmm%c2}" : : "r"(to), "r"(row_bytes), "i"(kTile) : "memory");
  }
  template <int kSums, int kLeft, int kRight>
  void multiply() {
    __asm__ volatile("{tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0|tdpbf16ps tmm%c0, tmm%c1, tmm%c2}" : : "i"(kSums), "i"(kLeft), "i"(kRight));
  }
};
#endif

class SoftwareTiles {
 public:
  template <int kTile>
  void zero() {
    std::memset(tiles_[kTile], 0, sizeof tiles_[kTile]);
  }
  template <int kTile>
  void load(const void* from, int64_t row_bytes) {
    for (int64_t row = 0; row < kTileSize; ++row) std::memcpy(tiles_[kTile][row], static_cast<const char*>(from) + row * row_bytes, 64);
  }
  template <int kTile>
  void store(void* to, int64_t row_bytes) {
    for (int64_t row = 0; row < kTileSize; ++row) std::memcpy(static_cast<char*>(to) + row * row_bytes, tiles_[kTile][row], 64);
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

// Where the operands of multiply_tiles lie; strides in elements.
struct TileProduct {
  const BFloat16* left;  // A[row][step] = left[row * left_row + step]
  int64_t left_row;
  const BFloat16* right;  // B: pair of steps p, column c at right[p * right_row + 2 * c]
  int64_t right_row;
  int64_t steps;  // multiple of kTileSteps
  float* sums;    // C[row][column] = sums[row * sums_row + column]
  int64_t sums_row;
  bool add;  // to what is there
};

// 16 rows times kTiles tiles of columns: tiles 0 to 5 hold sums, 6 a tile of A, 7 one of B.
template <int kTiles, class Tiles>
inline void multiply_tiles(Tiles& tiles, const TileProduct& p) {
  const auto each = [](const auto& use) {  // use(0), ... as constants
    use(std::integral_constant<int, 0>());
    if constexpr (kTiles > 1) use(std::integral_constant<int, 1>());
    if constexpr (kTiles > 2) use(std::integral_constant<int, 2>());
    if constexpr (kTiles > 3) use(std::integral_constant<int, 3>());
    if constexpr (kTiles > 4) use(std::integral_constant<int, 4>());
    if constexpr (kTiles > 5) use(std::integral_constant<int, 5>());
  };
  each([&](auto tile) {
    if (p.add) {
      tiles.template load<tile>(p.sums + tile * kTileSize, p.sums_row * 4);
    } else {
      tiles.template zero<tile>();
    }
  });
  for (int64_t step = 0; step < p.steps; step += kTileSteps) {
    const BFloat16* right = p.right + step / 2 * p.right_row;
    tiles.template load<6>(p.left + step, p.left_row * 2);
    each([&](auto tile) {
      tiles.template load<7>(right + tile * kTileSteps, p.right_row * 2);
      tiles.template multiply<tile, 6, 7>();
    });
  }
  each([&](auto tile) { tiles.template store<tile>(p.sums + tile * kTileSize, p.sums_row * 4); });
}

// 16 rows times `columns`, a multiple of kTileSize.
template <class Tiles>
inline void multiply_tiles(Tiles& tiles, TileProduct p, int64_t columns) {
  constexpr int64_t kMost = 6 * kTileSize;
  for (; columns > 0; columns -= kMost, p.right += 2 * kMost, p.sums += kMost) {
    switch (std::min(columns, kMost) / kTileSize) {
      case 1: multiply_tiles<1>(tiles, p); break;
      case 2: multiply_tiles<2>(tiles, p); break;
      case 3: multiply_tiles<3>(tiles, p); break;
      case 4: multiply_tiles<4>(tiles, p); break;
      case 5: multiply_tiles<5>(tiles, p); break;
      default: multiply_tiles<6>(tiles, p);
    }
  }
}

}  // namespace
}  // namespace ocl

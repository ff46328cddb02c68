// Which register-attention kernels are compiled for tensor cores, and the tile that each uses. Tuning on a GPU is one edit per row.
#pragma once

#include <cstdint>

// Head widths with a kernel of their own, in two groups that compile in parallel. Multiples of 8: rows move in 16-byte pieces.
#define OCL_NARROW_WIDTHS(APPLY, ...) APPLY(32, __VA_ARGS__) APPLY(40, __VA_ARGS__) APPLY(64, __VA_ARGS__) APPLY(72, __VA_ARGS__)
#define OCL_WIDE_WIDTHS(APPLY, ...) APPLY(80, __VA_ARGS__) APPLY(96, __VA_ARGS__) APPLY(128, __VA_ARGS__) APPLY(160, __VA_ARGS__)
#define OCL_WIDTHS(APPLY, ...) OCL_NARROW_WIDTHS(APPLY, __VA_ARGS__) OCL_WIDE_WIDTHS(APPLY, __VA_ARGS__)

namespace ocl::register_attention {

constexpr int64_t max_keys = 128;  // K + R of the tensor-core kernels

// ---- Forward: a warp holds the scores of 16 * row_tiles queries and all keys, 8 * key_tiles of them.

constexpr int forward_key_tiles[] = {4, 11, 13, 16};  // a few slots; 77 registers with up to 11 slots; with up to 27; the rest

struct ForwardTile {
  int width, key_tiles;  // the row holds up to these sizes
  int row_tiles;         // two share each key fragment: half the shared-memory reads, at twice the registers for scores
  int warps;             // of a block; small problems and small shared memories use fewer (plan.h)
  int resident;          // such blocks that one multiprocessor shall hold: bounds the registers
};

// At width 40 shared memory, tensor cores, exponentials and DRAM take about equally long; from 64 on DRAM leads.
constexpr ForwardTile forward_table[] = {
    {64, 4, 2, 4, 4},    //
    {40, 11, 2, 2, 6},   //
    {64, 13, 1, 4, 4},   //
    {72, 4, 1, 4, 4},    //
    {96, 16, 1, 4, 3},   //
    {160, 16, 1, 4, 2},  //
};

constexpr ForwardTile forward_tile(int width, int key_tiles) {
  for (const ForwardTile& row : forward_table) {
    if (width <= row.width && key_tiles <= row.key_tiles) return row;
  }
  return {};
}

constexpr int padded(int width) { return width / 8 % 2 != 0 ? width : width + 8; }  // see common.h

constexpr int64_t forward_shared_bytes(int width, int key_tiles, int warps) {
  return 2 * (2 * 8 * key_tiles + 2 * warps * 16 * forward_tile(width, key_tiles).row_tiles) * padded(width);
}

// ---- Backward: a warp owns 16 * blocks_per_warp keys and holds their gradients; query rows pass by in tiles.

constexpr int backward_key_blocks[] = {2, 6, 8};  // blocks of 16 keys

struct BackwardTile {
  int width, key_blocks;  // the row holds up to these sizes
  int blocks_per_warp;    // two share each query fragment
  int rows;               // queries per tile
  int resident;           // blocks that one multiprocessor shall hold: bounds the registers
};

constexpr BackwardTile backward_table[] = {
    {80, 2, 1, 32, 4},   //
    {160, 2, 1, 32, 4},  //
    {40, 6, 1, 64, 2},   //
    {80, 6, 1, 32, 2},   //
    {40, 8, 2, 32, 2},   //
    {160, 8, 1, 32, 1},  //
};

constexpr BackwardTile backward_tile(int width, int key_blocks) {
  for (const BackwardTile& row : backward_table) {
    if (width <= row.width && key_blocks <= row.key_blocks) return row;
  }
  return {};
}

constexpr int64_t backward_shared_bytes(int width, int key_blocks, int stages) {
  const BackwardTile tile = backward_tile(width, key_blocks);
  const int64_t keys = 16 * key_blocks, warps = key_blocks / tile.blocks_per_warp;
  return 2 * (2 * keys + 2 * stages * tile.rows) * padded(width) + 2 * keys * (tile.rows + 8) + 4 * (warps + 2) * tile.rows;
}

}  // namespace ocl::register_attention

// Sizes of the slot-attention kernels and how they cut tokens. Tuning on a GPU is an edit here.
//
// Everything that decides the order of a sum (groups, chunks) follows from the sizes of the problem alone: not from the batch,
// nor from the device.
#pragma once

#include <algorithm>
#include <cstdint>

namespace ocl::slot_attention {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- Tensor-core kernels: a warp owns a strip of 64 columns of one head; a group of warps covers all columns of 16 tokens.

constexpr int strip_width = 64;  // a row of a strip is 128 bytes: one line of global memory, all banks of shared memory
constexpr int tile_tokens = 16;
constexpr int max_slot_tiles = 4;  // of 8 slots, per head
constexpr int max_columns = 16;    // slot tiles of all heads
constexpr int max_warps = 16;      // of a block
constexpr int max_stages = 4;      // tiles in flight

// Warps of the blocks in which a warp holds the columns of its slots in registers; in larger blocks they go to shared memory.
constexpr int forward_register_warps(int slot_tiles) { return slot_tiles <= 3 ? max_warps : 0; }
constexpr int backward_register_warps(int slot_tiles) { return slot_tiles <= 2 ? max_warps : slot_tiles == 3 ? 12 : 0; }

// Groups of a block. Narrow tokens need several for enough bytes in flight and enough work between barriers.
constexpr int groups_of(int warps) { return warps == 1 ? 8 : warps <= 3 ? 4 : warps <= 6 ? 2 : 1; }

// ---- Chunks: the tokens of one block. Its partial sums, slots x width floats, shall be few beside what it reads.

struct Cut {
  int tile = 0;  // tokens that a block takes at once
  int tiles_per_chunk = 0, chunks = 0;
};

constexpr int64_t min_chunk = 128, max_chunk = 512, min_chunk_elements = 32 << 10;

// slots: of all heads; width: elements of a token's keys.
inline Cut cut_tokens(int64_t tokens, int64_t slots, int64_t width, int tile) {
  const int64_t wanted = std::clamp(std::max(8 * slots, min_chunk_elements / std::max<int64_t>(width, 1)), min_chunk, max_chunk);
  const int64_t tiles = ceil_div(tokens, tile), chunks = std::max<int64_t>(ceil_div(tokens, ceil_div(wanted, tile) * tile), 1);
  Cut cut;
  cut.tile = tile;
  cut.tiles_per_chunk = static_cast<int>(std::max<int64_t>(ceil_div(tiles, chunks), 1));
  cut.chunks = static_cast<int>(ceil_div(tiles, cut.tiles_per_chunk));
  return cut;
}

// ---- General kernels

constexpr int64_t general_max_slots = 2048;  // of all heads
constexpr int general_max_tokens = 128;

// Tokens per tile: as many of 128 as leave both scores of a backward tile within 48 KiB.
constexpr int general_tokens(int64_t slots) {
  int tokens = general_max_tokens;
  while (tokens > 1 && 2 * tokens * slots > (12 << 10)) tokens /= 2;
  return tokens;
}

// ---- Factors that keep 16-bit operands in the normal range of float16: powers of two, taken out of the sums in fp32.

// Weights reach from eps to 1.
constexpr float weight_factor = 16384.0f;

// Gradients of logits are about 1 / total, and totals are about tokens / slots.
constexpr float grad_factor_of(int64_t tokens, int64_t slots) {
  float factor = 1.0f;
  for (int64_t share = tokens / std::max<int64_t>(slots, 1); share > 1 && factor < 256.0f; share /= 2) factor *= 2.0f;
  return factor;
}

}  // namespace ocl::slot_attention

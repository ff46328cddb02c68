// What the tensor-core kernels of slot attention share.
//
// A block owns (image, chunk of tokens). Its warps form groups; a group takes 16 tokens at a time, and each of its warps owns a
// strip: up to 64 columns of one head, of keys and of values. A warp copies its own strips (nobody else reads them), multiplies
// them with the slots' columns, and leaves the partial scores in shared memory. After a barrier one thread per (token, slot % 8)
// adds them up, competes over heads x slots, and leaves 16-bit weights; after another barrier every warp multiplies its strip
// with these.
//   strip      [rows][64] of T, 16-byte chunks swizzled: chunk c of row r lies at c ^ (r % 8), so that ldmatrix meets no conflict
//   scores     [group][warp][slot tile][16 tokens][8 slots] float
//   weights    [group][column][2 halves of the tokens][8 slots][8 tokens] of T: matrices for ldmatrix, either way around
// where a column is a slot tile of a head: column = head * slot_tiles + tile.
#pragma once

#include "ocl/cuda/kernel.h"
#include "slot_attention/cuda/table.h"
#include "slot_attention/kernel.h"

namespace ocl::slot_attention {

using simt::bfloat16;
using simt::float16;
using simt::lane_index;
using simt::slice_of;
using simt::warp_index;

constexpr int places = 8 * tile_tokens;                // (token, slot % 8) of a tile
constexpr int strip_blocks = strip_width / 16;         // of 16 columns
constexpr int strip_tile = tile_tokens * strip_width;  // elements of one tile of a strip

// 16 bytes of a row.
template <class T>
struct alignas(16) Eight {
  T of[8];
};

// Where things lie in shared memory, in bytes from its start: the rings of all warps, then these. Not every kernel has all of them.
// Counted on the host: a kernel then adds constants, and keeps no addresses in registers.
struct Offsets {
  int query = 0, grad = 0;           // rows of slots, by strips
  int grad_logits = 0, weights = 0;  // 16-bit weights
  int logits = 0, chosen = 0;        // scores
  int totals = 0;                    // running totals of weights, [group][column][places]
  int delta = 0, inverse = 0;        // [head][8 * slot tiles]
  int64_t bytes = 0;
};

// How a kernel is cut, made by plan.h.
struct Shape {
  Cut cut;
  Offsets offsets;
  int key_strips = 0, value_strips = 0;  // per head
  int warps = 0, groups = 0;             // of a group; of a block
  int stages = 0;
  bool rows_in_registers = false;  // of slots
  float* sums = nullptr;           // partial sums [B, chunks, H, K, width], or null
  float* totals = nullptr;         // partial totals [B, chunks, H, K]
  float grad_factor = 1.0f;
};

inline int slot_tiles_of(const SlotAttention& in) { return static_cast<int>(ceil_div(in.K, 8)); }

inline int64_t ring_bytes(const SlotAttention& in, const Shape& shape) {
  return 2 * shape.groups * shape.warps * shape.stages * strip_tile * (in.shared ? 1 : 2);
}

// Takes `bytes` of shared memory.
inline int take(Offsets& offsets, int64_t bytes) {
  const int64_t offset = offsets.bytes;
  offsets.bytes += bytes;
  return static_cast<int>(offset);
}

template <class Element>
OCL_DEVICE Element* at(unsigned char* shared, int offset) {
  return reinterpret_cast<Element*>(shared + offset);
}

}  // namespace ocl::slot_attention

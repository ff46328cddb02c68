// Partial scores of a tile of tokens, and the softmax over heads x slots.
#pragma once

#include "slot_attention/cuda/common.h"

namespace ocl::slot_attention {

// The partial scores of one product.
template <int slot_tiles>
struct Scores {
  float* data;
  int heads, strips;  // strips of a head

  OCL_DEVICE float* of_warp(int group, int warp) const { return data + (group * heads * strips + warp) * slot_tiles * places; }

  // Where the score of a place, slot tile and head is collected.
  OCL_DEVICE float* cell(int group, int head, int tile, int place) const {
    return of_warp(group, head * strips) + tile * places + place;
  }

  OCL_DEVICE float collect(const float* cell) const {
    float sum = cell[0];
    for (int strip = 1; strip < strips; ++strip) sum += cell[strip * slot_tiles * places];
    return sum;
  }
};

// Lanes with the same token are 8 neighbours.
OCL_DEVICE float sum_of_eight(float value) {
  OCL_UNROLL
  for (int mask = 1; mask < 8; mask *= 2) value += simt::shuffle_xor(value, mask);
  return value;
}

OCL_DEVICE float maximum_of_eight(float value) {
  OCL_UNROLL
  for (int mask = 1; mask < 8; mask *= 2) value = fmaxf(value, simt::shuffle_xor(value, mask));
  return value;
}

// The thread's part of a token: its slots slot, slot + 8, ... of every head.
struct Place {
  int group, place, token, slot;

  OCL_DEVICE Place(int item, int first_of_tile)
      : group(item / places), place(item % places), token(first_of_tile + item / 8), slot(item % 8) {}

  // Of weights[column].
  OCL_DEVICE int weight_offset(int columns, int column) const {
    const int of_group = place / 8;
    return ((group * columns + column) * 2 + of_group / 8) * 64 + slot * 8 + of_group % 8;
  }
};

// visit(head, slot tile, column)
template <int slot_tiles, class Visit>
OCL_DEVICE void each_column(int heads, const Visit& visit) {
  OCL_NO_UNROLL
  for (int head = 0; head < heads; ++head) {
    OCL_UNROLL
    for (int tile = 0; tile < slot_tiles; ++tile) visit(head, tile, head * slot_tiles + tile);
  }
}

// Cells become exp(logit - maximum), 0 for slots that do not exist. Returns 1 / sum over heads x slots.
template <int slot_tiles>
OCL_DEVICE float compete(const Scores<slot_tiles>& scores, const Place& at, const SlotAttention& in) {
  const float scale = in.scale * simt::log2_e;
  const int heads = static_cast<int>(in.H), slots = static_cast<int>(in.K);
  float maximum = -simt::infinity, sum = 0.0f;
  each_column<slot_tiles>(heads, [&](int head, int tile, int) {
    float* const cell = scores.cell(at.group, head, tile, at.place);
    const float logit = 8 * tile + at.slot < slots ? scores.collect(cell) * scale : -simt::infinity;
    cell[0] = logit;
    maximum = fmaxf(maximum, logit);
  });
  maximum = maximum_of_eight(maximum);
  each_column<slot_tiles>(heads, [&](int head, int tile, int) {
    float* const cell = scores.cell(at.group, head, tile, at.place);
    cell[0] = simt::exp2_approx(cell[0] - maximum);
    sum += cell[0];
  });
  return 1.0f / sum_of_eight(sum);
}

}  // namespace ocl::slot_attention

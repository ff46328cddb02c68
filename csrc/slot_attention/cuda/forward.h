// Slot attention forward on tensor cores, see common.h: partial sums of weighted values and of weights, for one chunk of tokens.
//   sums[image, chunk, head, slot] = sum over tokens of (attn + eps) value * weight_factor
//   totals[image, chunk, head, slot] = sum over tokens of (attn + eps), of weights that are not rounded
// The slots' columns of a warp stay in registers where these suffice, as fragments of a right operand; so do its sums. Where value
// is key, the strip of a token is read from global memory once and serves both products.
// Shared memory: the rings of all warps; more than 24 slots of a head; 16-bit weights; partial scores; a running total per place.
#pragma once

#include "slot_attention/cuda/competition.h"
#include "slot_attention/cuda/strips.h"

namespace ocl::slot_attention {

inline Offsets forward_offsets(const SlotAttention& in, const Shape& shape) {
  const int64_t tiles = shape.groups * in.H * slot_tiles_of(in);
  Offsets offsets;
  take(offsets, ring_bytes(in, shape));
  if (!shape.rows_in_registers) {
    offsets.query = take(offsets, 2 * in.H * shape.key_strips * 8 * slot_tiles_of(in) * strip_width);
  }
  offsets.weights = take(offsets, 2 * tiles * places);
  offsets.logits = take(offsets, 4 * tiles * shape.key_strips * places);
  offsets.totals = take(offsets, 4 * tiles * places);
  return offsets;
}

// Scores of the block's tokens -> attention, weights, running totals.
template <class T, int slot_tiles>
OCL_DEVICE void weigh_tile(const SlotAttentionForward& work, const Shape& shape, unsigned char* shared, int image,
                           int first_of_tile) {
  const SlotAttention& in = work.in;
  const int heads = static_cast<int>(in.H), slots = static_cast<int>(in.K), tokens = static_cast<int>(in.N);
  const int columns = heads * slot_tiles, threads = 32 * shape.warps * shape.groups;
  const float eps = in.eps_on_weights ? in.eps : 0.0f;
  const Scores<slot_tiles> scores{at<float>(shared, shape.offsets.logits), heads, shape.key_strips};
  OCL_NO_UNROLL
  for (int item = simt::opaque(simt::thread_index()); item < shape.groups * places; item += threads) {
    const Place where(item, first_of_tile);
    const float normalizer = compete(scores, where, in);
    each_column<slot_tiles>(heads, [&](int head, int tile, int column) {
      const int slot = 8 * tile + where.slot;
      const bool valid = slot < slots && where.token < tokens;
      const float attn = scores.cell(where.group, head, tile, where.place)[0] * normalizer;
      if (valid && work.attn != nullptr) {
        work.attn[((static_cast<int64_t>(image) * heads + head) * slots + slot) * tokens + where.token] = attn;
      }
      const float weight = valid ? attn + eps : 0.0f;
      at<float>(shared, shape.offsets.totals)[(where.group * columns + column) * places + where.place] += weight;
      at<T>(shared, shape.offsets.weights)[where.weight_offset(columns, column)] = simt::from_float<T>(weight * weight_factor);
    });
  }
}

// By the threads that add to them.
OCL_DEVICE void clear_totals(float* running, int columns, const Shape& shape) {
  OCL_NO_UNROLL
  for (int item = simt::thread_index(); item < shape.groups * places; item += 32 * shape.warps * shape.groups) {
    for (int column = 0; column < columns; ++column) running[(item / places * columns + column) * places + item % places] = 0.0f;
  }
}

// totals[head][slot]: the running totals of all places of a slot, in order. A warp takes a column at a time.
template <int slot_tiles>
OCL_DEVICE void flush_totals(float* totals, const float* running, const SlotAttention& in, const Shape& shape) {
  const int columns = static_cast<int>(in.H) * slot_tiles, slots = static_cast<int>(in.K), lane = lane_index();
  OCL_NO_UNROLL
  for (int column = warp_index(); column < columns; column += shape.warps * shape.groups) {
    float total = 0.0f;
    for (int group = 0; group < shape.groups; ++group) {
      OCL_UNROLL
      for (int place = 0; place < places; place += 32) total += running[(group * columns + column) * places + place + lane];
    }
    total += simt::shuffle_xor(total, 8);
    total += simt::shuffle_xor(total, 16);
    const int slot = column % slot_tiles * 8 + lane;
    if (lane < 8 && slot < slots) totals[column / slot_tiles * slots + slot] = total;
  }
}

template <class T, int slot_tiles, bool in_registers>
OCL_KERNEL void OCL_LAUNCH_BOUNDS(32 * max_warps, 1) forward_kernel(const SlotAttentionForward work, const Shape shape) {
  OCL_DYNAMIC_SHARED(shared);
  const SlotAttention& in = work.in;
  const int slots = static_cast<int>(in.K), columns = static_cast<int>(in.H) * slot_tiles;
  const int image = simt::block_x() / shape.cut.chunks, chunk = simt::block_x() % shape.cut.chunks;
  const int group = warp_index() / shape.warps, member = warp_index() % shape.warps;
  const Strip keys(member, in.H, shape.key_strips, in.D), values(member, in.H, shape.value_strips, in.E);
  const Scores<slot_tiles> scores{at<float>(shared, shape.offsets.logits), static_cast<int>(in.H), shape.key_strips};
  const T* const weights = at<T>(shared, shape.offsets.weights) + (group * columns + values.head * slot_tiles) * places;

  T* const place_of_rows = at<T>(shared, shape.offsets.query) + member * 8 * slot_tiles * strip_width;
  const Rows<T, slot_tiles, in_registers> query(place_of_rows, in.query, image, keys, slots, group == 0);
  simt::copy_async_commit();
  Stream<T> stream(shared, in, shape, image, chunk, keys, values, true);
  StripSums<slot_tiles> sum;
  clear<slot_tiles>(sum);
  clear_totals(at<float>(shared, shape.offsets.totals), columns, shape);
  if constexpr (!in_registers) {
    wait_for_oldest(shape.stages);
    simt::sync_threads();  // the slots' rows are there
  }
  OCL_NO_UNROLL
  while (stream.advance()) {
    if (keys.width > 0) {
      TileScores<slot_tiles> score;
      query.multiply(score, stream.keys());
      store_scores<slot_tiles>(scores.of_warp(group, member), score);
    }
    simt::sync_threads();  // scores are there, and nobody reads the weights of the last tile any more
    weigh_tile<T, slot_tiles>(work, shape, shared, image, stream.first());
    simt::sync_threads();  // weights are there, and nobody reads the scores any more
    if (values.width > 0) accumulate<T, slot_tiles>(sum, stream.values(), weights);
  }
  add_groups<slot_tiles>(sum, at<float>(shared, 0), shape);
  const int64_t part = simt::block_x() * in.H * slots;  // of (image, chunk)
  if (group == 0 && values.width > 0) {
    flush<slot_tiles>(shape.sums + (part + values.head * slots) * in.E, sum, values, slots, static_cast<int>(in.E));
  }
  flush_totals<slot_tiles>(shape.totals + part, at<float>(shared, shape.offsets.totals), in, shape);
}

}  // namespace ocl::slot_attention

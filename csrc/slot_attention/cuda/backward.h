// Slot attention backward on tensor cores, see common.h: one pass over the tokens.
//   chosen = value . dupdates,  g = (chosen - dupdates . updates) / total + dattn,  dlogits = attn (g - sum over slots of attn g)
//   dkey = scale dlogits query,  dvalue = (weight / total) dupdates,  sums = partial sums of dlogits key, for one chunk of tokens
// Logits are computed again. dkey and dvalue of a tile leave through the shared memory of the strip that they belong to; where
// value is key they are one sum. The columns of query and dupdates that a warp owns serve both ways around: as they are for scores,
// transposed for gradients of tokens. They stay in registers where these suffice.
// Shared memory: the rings of all warps; else query and dupdates by strips; 16-bit dlogits and weights; partial scores of both
// products; dupdates . updates and 1 / total.
#pragma once

#include "slot_attention/cuda/competition.h"
#include "slot_attention/cuda/strips.h"

namespace ocl::slot_attention {

inline Offsets backward_offsets(const SlotAttention& in, const Shape& shape) {
  const int64_t rows = 8 * slot_tiles_of(in), tiles = shape.groups * in.H * slot_tiles_of(in);
  Offsets offsets;
  take(offsets, ring_bytes(in, shape));
  if (!shape.rows_in_registers) {
    offsets.query = take(offsets, 2 * in.H * shape.key_strips * rows * strip_width);
    offsets.grad = take(offsets, 2 * in.H * shape.value_strips * rows * strip_width);
  }
  offsets.grad_logits = take(offsets, 2 * tiles * places);
  offsets.weights = take(offsets, 2 * tiles * places);
  offsets.logits = take(offsets, 4 * tiles * shape.key_strips * places);
  offsets.chosen = take(offsets, 4 * tiles * shape.value_strips * places);
  offsets.delta = take(offsets, 4 * in.H * rows);
  offsets.inverse = take(offsets, 4 * in.H * rows);
  return offsets;
}

// What the block computes.
struct Wanted {
  bool query, key, value, logits;  // value: of the value's own tensor; logits: hence dlogits

  OCL_DEVICE Wanted(const SlotAttentionBackward& work, const Shape& shape)
      : query(shape.sums != nullptr),
        key(work.grad_key.data != nullptr),
        value(work.grad_value.data != nullptr),
        logits(query || key) {}
};

// delta = dupdates . updates and 1 / total of every slot; zeros for slots that do not exist. A warp takes a slot at a time.
template <class T, int slot_tiles>
OCL_DEVICE void load_constants(const SlotAttentionBackward& work, const Shape& shape, unsigned char* shared, int image) {
  constexpr int rows = 8 * slot_tiles;
  const SlotAttention& in = work.in;
  const int heads = static_cast<int>(in.H), slots = static_cast<int>(in.K);
  OCL_NO_UNROLL
  for (int row = warp_index(); row < heads * rows; row += shape.warps * shape.groups) {
    const int head = row / rows, slot = row % rows;
    float sum = 0.0f, total = 0.0f;
    if (slot < slots) {
      const T* const update = slice_of<const T>(work.updates, image, head) + slot * work.updates.row;
      const T* const grad = slice_of<const T>(work.grad_updates, image, head) + slot * work.grad_updates.row;
      for (int column = 8 * lane_index(); column < in.E; column += 8 * 32) {
        const auto left = *reinterpret_cast<const Eight<T>*>(update + column);
        const auto right = *reinterpret_cast<const Eight<T>*>(grad + column);
        OCL_UNROLL
        for (int i = 0; i < 8; ++i) sum += simt::to_float(left.of[i]) * simt::to_float(right.of[i]);
      }
      total = work.total[(static_cast<int64_t>(image) * heads + head) * slots + slot];
    }
    sum = simt::warp_sum(sum);
    if (lane_index() == 0) {
      at<float>(shared, shape.offsets.delta)[row] = sum;
      at<float>(shared, shape.offsets.inverse)[row] = total > 0.0f ? 1.0f / total : 0.0f;
    }
  }
}

// Scores of the block's tokens -> 16-bit dlogits * grad_factor and weights / total * weight_factor.
template <class T, int slot_tiles>
OCL_DEVICE void differentiate_tile(const SlotAttentionBackward& work, const Shape& shape, const Wanted& wanted,
                                   unsigned char* shared, int image, int first_of_tile) {
  constexpr int rows = 8 * slot_tiles;
  const SlotAttention& in = work.in;
  const int heads = static_cast<int>(in.H), slots = static_cast<int>(in.K), tokens = static_cast<int>(in.N);
  const int columns = heads * slot_tiles, threads = 32 * shape.warps * shape.groups;
  const float eps = in.eps_on_weights ? in.eps : 0.0f;
  const Scores<slot_tiles> logits{at<float>(shared, shape.offsets.logits), heads, shape.key_strips};
  const Scores<slot_tiles> chosen{at<float>(shared, shape.offsets.chosen), heads, shape.value_strips};
  const float* const delta = at<float>(shared, shape.offsets.delta);
  const float* const inverse = at<float>(shared, shape.offsets.inverse);
  OCL_NO_UNROLL
  for (int item = simt::opaque(simt::thread_index()); item < shape.groups * places; item += threads) {
    const Place where(item, first_of_tile);
    const float normalizer = compete(logits, where, in);
    float mean = 0.0f;
    if (wanted.logits) {
      each_column<slot_tiles>(heads, [&](int head, int tile, int) {
        const int slot = 8 * tile + where.slot, row = head * rows + slot;
        float* const cell = chosen.cell(where.group, head, tile, where.place);
        float grad = (chosen.collect(cell) - delta[row]) * inverse[row];
        if (work.grad_attn != nullptr && slot < slots && where.token < tokens) {
          grad += work.grad_attn[((static_cast<int64_t>(image) * heads + head) * slots + slot) * tokens + where.token];
        }
        cell[0] = grad;
        mean += logits.cell(where.group, head, tile, where.place)[0] * normalizer * grad;
      });
      mean = sum_of_eight(mean);
    }
    each_column<slot_tiles>(heads, [&](int head, int tile, int column) {
      const bool valid = 8 * tile + where.slot < slots && where.token < tokens;
      const float attn = logits.cell(where.group, head, tile, where.place)[0] * normalizer;
      const float weight = valid ? (attn + eps) * inverse[head * rows + 8 * tile + where.slot] : 0.0f;
      const int offset = where.weight_offset(columns, column);
      at<T>(shared, shape.offsets.weights)[offset] = simt::from_float<T>(weight * weight_factor);
      if (!wanted.logits) return;
      const float grad_logit = valid ? attn * (chosen.cell(where.group, head, tile, where.place)[0] - mean) : 0.0f;
      at<T>(shared, shape.offsets.grad_logits)[offset] = simt::from_float<T>(grad_logit * shape.grad_factor);
    });
  }
}

// ---- Gradients of tokens

OCL_DEVICE void multiply(BlockGradient& gradient, float factor) {
  OCL_UNROLL
  for (int i = 0; i < 8; ++i) gradient[i / 4][i % 4] *= factor;
}

template <class T>
OCL_DEVICE void stage_gradient(T* strip, const BlockGradient& gradient, int block) {
  const int lane = simt::opaque(lane_index()), group = lane / 4, quad = lane % 4;
  OCL_UNROLL
  for (int i = 0; i < 4; ++i) {
    auto* word = reinterpret_cast<uint32_t*>(strip + strip_offset(group + i % 2 * 8, 2 * block + i / 2) + 2 * quad);
    *word = simt::pack2<T>(gradient[i / 2][i % 2 * 2], gradient[i / 2][i % 2 * 2 + 1]);
  }
}

// Tokens first .. first + 15 of a gradient, staged in place of their strip.
template <class T>
OCL_DEVICE void write_gradient(const View& view, const T* strip, const Strip& columns, int image, int first, int last) {
  const int chunk = lane_index() % 8;
  T* const rows = slice_of<T>(view, image, columns.head) + columns.first + 8 * chunk;
  OCL_UNROLL
  for (int pass = 0; pass < tile_tokens; pass += 4) {
    const int row = pass + lane_index() / 8;
    if (first + row >= last || 8 * chunk >= columns.width) continue;
    const auto piece = *reinterpret_cast<const simt::Uint4*>(strip + strip_offset(row, chunk));
    *reinterpret_cast<simt::Uint4*>(rows + (first + row) * view.row) = piece;
  }
}

// Writes the gradient of a tile of keys, and of values where they are the keys.
template <class T, int slot_tiles, class SlotRows>
OCL_DEVICE void write_grad_key(const SlotAttentionBackward& work, const Shape& shape, T* strip, const Strip& keys,
                               const SlotRows& query, const SlotRows& grad, const T* grad_logits, const T* weights, int image,
                               int first) {
  WeightFragments<slot_tiles> of_logits, of_values;
  load_weights<T, slot_tiles>(of_logits, grad_logits);
  if (work.in.shared) load_weights<T, slot_tiles>(of_values, weights);
  OCL_UNROLL
  for (int block = 0; block < strip_blocks; ++block) {
    BlockGradient gradient = {};
    query.spread(gradient, of_logits, block);
    multiply(gradient, work.in.scale / shape.grad_factor);
    if (work.in.shared) {
      multiply(gradient, weight_factor);
      grad.spread(gradient, of_values, block);
      multiply(gradient, 1.0f / weight_factor);
    }
    stage_gradient(strip, gradient, block);
  }
  simt::sync_warp();  // what other lanes staged is there
  write_gradient(work.grad_key, strip, keys, image, first, static_cast<int>(work.in.N));
}

template <class T, int slot_tiles, class SlotRows>
OCL_DEVICE void write_grad_value(const SlotAttentionBackward& work, T* strip, const Strip& values, const SlotRows& grad,
                                 const T* weights, int image, int first) {
  WeightFragments<slot_tiles> of_values;
  load_weights<T, slot_tiles>(of_values, weights);
  OCL_UNROLL
  for (int block = 0; block < strip_blocks; ++block) {
    BlockGradient gradient = {};
    grad.spread(gradient, of_values, block);
    multiply(gradient, 1.0f / weight_factor);
    stage_gradient(strip, gradient, block);
  }
  simt::sync_warp();  // what other lanes staged is there
  write_gradient(work.grad_value, strip, values, image, first, static_cast<int>(work.in.N));
}

template <class T, int slot_tiles, bool in_registers>
OCL_KERNEL void OCL_LAUNCH_BOUNDS(32 * (in_registers ? backward_register_warps(slot_tiles) : max_warps), 1)
    backward_kernel(const SlotAttentionBackward work, const Shape shape) {
  OCL_DYNAMIC_SHARED(shared);
  constexpr int rows_size = 8 * slot_tiles * strip_width;
  const SlotAttention& in = work.in;
  const Wanted wanted(work, shape);
  const int heads = static_cast<int>(in.H), slots = static_cast<int>(in.K), columns = heads * slot_tiles;
  const int image = simt::block_x() / shape.cut.chunks, chunk = simt::block_x() % shape.cut.chunks;
  const int group = warp_index() / shape.warps, member = warp_index() % shape.warps;
  const Strip keys(member, in.H, shape.key_strips, in.D), values(member, in.H, shape.value_strips, in.E);
  const Scores<slot_tiles> logits{at<float>(shared, shape.offsets.logits), heads, shape.key_strips};
  const Scores<slot_tiles> chosen{at<float>(shared, shape.offsets.chosen), heads, shape.value_strips};
  const T* const grad_logits = at<T>(shared, shape.offsets.grad_logits) + (group * columns + keys.head * slot_tiles) * places;
  const T* const weights = at<T>(shared, shape.offsets.weights) + (group * columns + values.head * slot_tiles) * places;
  const Rows<T, slot_tiles, in_registers> query(at<T>(shared, shape.offsets.query) + member * rows_size, in.query, image, keys,
                                                slots, group == 0);
  const Rows<T, slot_tiles, in_registers> grad(at<T>(shared, shape.offsets.grad) + member * rows_size, work.grad_updates, image,
                                               values, slots, group == 0);
  simt::copy_async_commit();
  Stream<T> stream(shared, in, shape, image, chunk, keys, values, wanted.logits);
  load_constants<T, slot_tiles>(work, shape, shared, image);
  StripSums<slot_tiles> sum;
  clear<slot_tiles>(sum);
  wait_for_oldest(shape.stages);
  simt::sync_threads();  // the slots' rows and constants are there
  OCL_NO_UNROLL
  while (stream.advance()) {
    TileScores<slot_tiles> score;
    if (keys.width > 0) {
      query.multiply(score, stream.keys());
      store_scores<slot_tiles>(logits.of_warp(group, member), score);
    }
    if (values.width > 0 && wanted.logits) {
      grad.multiply(score, stream.values());
      store_scores<slot_tiles>(chosen.of_warp(group, member), score);
    }
    simt::sync_threads();  // scores are there, and nobody reads the weights of the last tile any more
    differentiate_tile<T, slot_tiles>(work, shape, wanted, shared, image, stream.first());
    simt::sync_threads();  // weights are there, and nobody reads the scores any more

    const int first_of_group = stream.first() + group * tile_tokens;
    if (keys.width > 0 && wanted.query) accumulate<T, slot_tiles>(sum, stream.keys(), grad_logits);
    if (keys.width > 0 && wanted.key) {
      write_grad_key<T, slot_tiles>(work, shape, stream.keys(), keys, query, grad, grad_logits, weights, image, first_of_group);
    }
    if (values.width > 0 && wanted.value) {
      write_grad_value<T, slot_tiles>(work, stream.values(), values, grad, weights, image, first_of_group);
    }
  }
  if (!wanted.query) return;
  add_groups<slot_tiles>(sum, at<float>(shared, 0), shape);
  if (group == 0 && keys.width > 0) {
    float* const partial = shape.sums + (simt::block_x() * in.H + keys.head) * slots * in.D;
    flush<slot_tiles>(partial, sum, keys, slots, static_cast<int>(in.D));
  }
}

}  // namespace ocl::slot_attention

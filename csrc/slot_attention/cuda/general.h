// Slot attention for float32, and in every type for widths, sizes and strides that the tensor-core kernels do not take: plain
// multiply-adds (ocl/cuda/product.h), any D and E, any strides, H * K up to general_max_slots.
//
// A block of 128 threads owns (image, chunk of tokens) and takes up to 128 tokens at a time. The scores of a tile, [slots of all
// heads][tokens], stay in shared memory; one thread per token competes over them. Sums over tokens are added to partial sums in
// global memory that only this block touches, each by one thread.
// Shared memory: staged slices of a product; scores; backward: the second scores, dupdates . updates and 1 / total of every slot.
#pragma once

#include "ocl/cuda/product.h"
#include "slot_attention/cuda/common.h"
#include "slot_attention/cuda/reduce.h"

namespace ocl::slot_attention {

using simt::Matrix;

using SlotProduct = simt::BlockProduct<8, 128>;   // of slots by tokens, or slots by columns
using TokenProduct = simt::BlockProduct<32, 64>;  // of tokens by columns
constexpr int general_threads = simt::product_threads;
constexpr int staged_floats = std::max(SlotProduct::shared_floats, TokenProduct::shared_floats);

constexpr int64_t general_shared_bytes(int64_t slots, bool backward) {
  const int64_t scores = general_tokens(slots) * slots;
  return (staged_floats + (backward ? 2 * scores + 2 * slots : scores)) * static_cast<int64_t>(sizeof(float));
}

// A tile of tokens, and where its scores lie: scores[head * K + slot][token].
struct Tile {
  int image, first, count, stride;

  OCL_DEVICE Tile(const SlotAttention& in, const Shape& shape, int number) : stride(shape.cut.tile) {
    image = simt::block_x() / shape.cut.chunks;
    first = (simt::block_x() % shape.cut.chunks * shape.cut.tiles_per_chunk + number) * stride;
    const int64_t left = in.N - first;
    count = left < stride ? static_cast<int>(left > 0 ? left : 0) : stride;
  }
};

// scores[slot][token] = factor * slots . tokens, for every head
template <class T>
OCL_DEVICE void score_tile(float* scores, float* staged, const View& slot_view, const View& token_view, const SlotAttention& in,
                           const Tile& tile, int width, float factor) {
  const int heads = static_cast<int>(in.H), slots = static_cast<int>(in.K);
  for (int head = 0; head < heads; ++head) {
    const Matrix<const T> slot(slot_view, tile.image, head), token(token_view, tile.image, head);
    for (int first = 0; first < slots; first += 8) {
      float* const rows = scores + (head * slots + first) * tile.stride;
      SlotProduct(staged).multiply<true, true>(
          slots - first < 8 ? slots - first : 8, tile.count, width, [&](int i, int k) { return slot(first + i, k); },
          [&](int j, int k) { return token(tile.first + j, k); },
          [&](int i, int j, float sum) { rows[i * tile.stride + j] = factor * sum; });
    }
  }
}

// partial[slot][column] (+)= sum over the tile's tokens of weights[slot][token] tokens[token][column], for every head
template <class T>
OCL_DEVICE void add_weighted_tokens(float* partial, bool fresh, float* staged, const float* weights, const View& token_view,
                                    const SlotAttention& in, const Tile& tile, int width) {
  const int heads = static_cast<int>(in.H), slots = static_cast<int>(in.K);
  for (int head = 0; head < heads; ++head) {
    const Matrix<const T> token(token_view, tile.image, head);
    for (int first = 0; first < slots; first += 8) {
      const float* const rows = weights + (head * slots + first) * tile.stride;
      for (int column = 0; column < width; column += 128) {
        float* const out = partial + (static_cast<int64_t>(head) * slots + first) * width + column;
        SlotProduct(staged).multiply<true, false>(
            slots - first < 8 ? slots - first : 8, width - column < 128 ? width - column : 128, tile.count,
            [&](int i, int k) { return rows[i * tile.stride + k]; },
            [&](int j, int k) { return token(tile.first + k, column + j); },
            [&](int i, int j, float sum) {
              float& place = out[static_cast<int64_t>(i) * width + j];
              place = fresh ? sum : place + sum;
            });
      }
    }
  }
}

// A thread turns the scores of its token into attention over all slots.
OCL_DEVICE void compete_for_token(float* scores, int slots, int stride) {
  float maximum = -simt::infinity, sum = 0.0f;
  for (int slot = 0; slot < slots; ++slot) maximum = fmaxf(maximum, scores[slot * stride]);
  for (int slot = 0; slot < slots; ++slot) {
    const float share = expf(scores[slot * stride] - maximum);
    scores[slot * stride] = share;
    sum += share;
  }
  const float normalizer = 1.0f / sum;
  for (int slot = 0; slot < slots; ++slot) scores[slot * stride] *= normalizer;
}

// totals[slot] (+)= sum over the tile's tokens. A warp takes a slot at a time.
OCL_DEVICE void add_totals(float* totals, bool fresh, const float* weights, int slots, const Tile& tile) {
  for (int slot = warp_index(); slot < slots; slot += general_threads / 32) {
    float total = 0.0f;
    for (int token = lane_index(); token < tile.count; token += 32) total += weights[slot * tile.stride + token];
    total = simt::warp_sum(total);
    if (lane_index() == 0) totals[slot] = fresh ? total : totals[slot] + total;
  }
}

template <class T>
OCL_KERNEL void OCL_LAUNCH_BOUNDS(general_threads, 4) general_forward_kernel(const SlotAttentionForward work, const Shape shape) {
  OCL_DYNAMIC_SHARED(shared);
  const SlotAttention& in = work.in;
  float* const staged = reinterpret_cast<float*>(shared);
  float* const scores = staged + staged_floats;
  const int all_slots = static_cast<int>(in.H * in.K), width = static_cast<int>(in.E), token = simt::thread_index();
  const float eps = in.eps_on_weights ? in.eps : 0.0f;
  for (int number = 0; number < shape.cut.tiles_per_chunk; ++number) {
    const Tile tile(in, shape, number);
    if (tile.count == 0) break;
    score_tile<T>(scores, staged, in.query, in.key, in, tile, static_cast<int>(in.D), in.scale);
    simt::sync_threads();
    if (token < tile.count) {
      compete_for_token(scores + token, all_slots, tile.stride);
      for (int slot = 0; slot < all_slots; ++slot) {
        float& attn = scores[slot * tile.stride + token];
        const int64_t row = static_cast<int64_t>(tile.image) * all_slots + slot;
        if (work.attn != nullptr) work.attn[row * in.N + tile.first + token] = attn;
        attn += eps;
      }
    }
    simt::sync_threads();
    const int64_t part = static_cast<int64_t>(simt::block_x()) * all_slots;  // of (image, chunk)
    add_totals(shape.totals + part, number == 0, scores, all_slots, tile);
    add_weighted_tokens<T>(shape.sums + part * width, number == 0, staged, scores, in.value, in, tile, width);
    simt::sync_threads();  // nobody reads the scores any more
  }
}

// ---- Backward

struct GeneralScores {
  float *staged, *attn, *chosen;  // become dlogits and weight / total
  float *delta, *inverse;         // [slots of all heads]
};

template <class T>
OCL_DEVICE void load_constants(const SlotAttentionBackward& work, const GeneralScores& scores, int image) {
  const SlotAttention& in = work.in;
  const int heads = static_cast<int>(in.H), slots = static_cast<int>(in.K), width = static_cast<int>(in.E);
  for (int row = warp_index(); row < heads * slots; row += general_threads / 32) {
    const Matrix<const T> updates(work.updates, image, row / slots), grads(work.grad_updates, image, row / slots);
    float sum = 0.0f;
    for (int column = lane_index(); column < width; column += 32) sum += updates(row % slots, column) * grads(row % slots, column);
    sum = simt::warp_sum(sum);
    const float total = work.total[static_cast<int64_t>(image) * heads * slots + row];
    if (lane_index() == 0) {
      scores.delta[row] = sum;
      scores.inverse[row] = total > 0.0f ? 1.0f / total : 0.0f;
    }
  }
}

// A thread turns attention and chosen values of its token into dlogits and weight / total.
OCL_DEVICE void differentiate_token(const SlotAttentionBackward& work, const GeneralScores& scores, const Tile& tile, int token) {
  const SlotAttention& in = work.in;
  const int slots = static_cast<int>(in.H * in.K);
  const float eps = in.eps_on_weights ? in.eps : 0.0f;
  float mean = 0.0f;
  for (int slot = 0; slot < slots; ++slot) {
    float& chosen = scores.chosen[slot * tile.stride + token];
    chosen = (chosen - scores.delta[slot]) * scores.inverse[slot];
    if (work.grad_attn != nullptr) {
      chosen += work.grad_attn[(static_cast<int64_t>(tile.image) * slots + slot) * in.N + tile.first + token];
    }
    mean += scores.attn[slot * tile.stride + token] * chosen;
  }
  for (int slot = 0; slot < slots; ++slot) {
    float& attn = scores.attn[slot * tile.stride + token];
    float& chosen = scores.chosen[slot * tile.stride + token];
    const float weight = (attn + eps) * scores.inverse[slot];
    attn *= chosen - mean;
    chosen = weight;
  }
}

// One way by which a gradient reaches tokens: factor * sum over slots of weights[slot][token] rows[slot].
struct Path {
  const float* weights;
  const View& rows;
  float factor;
};

// gradient[token][column] = sum over both paths, or over the first one
template <class T>
OCL_DEVICE void write_tokens(const View& view, float* staged, const Path& first, const Path& second, int paths,
                             const SlotAttention& in, const Tile& tile, int width) {
  const int heads = static_cast<int>(in.H), slots = static_cast<int>(in.K);
  for (int head = 0; head < heads; ++head) {
    const Matrix<const T> first_rows(first.rows, tile.image, head), second_rows(second.rows, tile.image, head);
    const Matrix<T> gradient(view, tile.image, head);
    for (int token = 0; token < tile.count; token += 32) {
      const int offset = head * slots * tile.stride + token;
      for (int column = 0; column < width; column += 64) {
        TokenProduct(staged).multiply<false, false>(
            tile.count - token < 32 ? tile.count - token : 32, width - column < 64 ? width - column : 64, paths * slots,
            [&](int i, int k) {
              return k < slots ? first.factor * first.weights[offset + k * tile.stride + i]
                               : second.factor * second.weights[offset + (k - slots) * tile.stride + i];
            },
            [&](int j, int k) { return k < slots ? first_rows(k, column + j) : second_rows(k - slots, column + j); },
            [&](int i, int j, float sum) { gradient.at(tile.first + token + i, column + j) = simt::from_float<T>(sum); });
      }
    }
  }
}

template <class T>
OCL_KERNEL void OCL_LAUNCH_BOUNDS(general_threads, 3) general_backward_kernel(const SlotAttentionBackward work, const Shape shape) {
  OCL_DYNAMIC_SHARED(shared);
  const SlotAttention& in = work.in;
  const int all_slots = static_cast<int>(in.H * in.K), key_width = static_cast<int>(in.D), value_width = static_cast<int>(in.E);
  GeneralScores scores;
  scores.staged = reinterpret_cast<float*>(shared);
  scores.attn = scores.staged + staged_floats;
  scores.chosen = scores.attn + all_slots * shape.cut.tile;
  scores.delta = scores.chosen + all_slots * shape.cut.tile;
  scores.inverse = scores.delta + all_slots;
  load_constants<T>(work, scores, simt::block_x() / shape.cut.chunks);
  for (int number = 0; number < shape.cut.tiles_per_chunk; ++number) {
    const Tile tile(in, shape, number);
    if (tile.count == 0) break;
    score_tile<T>(scores.attn, scores.staged, in.query, in.key, in, tile, key_width, in.scale);
    score_tile<T>(scores.chosen, scores.staged, work.grad_updates, in.value, in, tile, value_width, 1.0f);
    simt::sync_threads();
    if (simt::thread_index() < tile.count) {
      compete_for_token(scores.attn + simt::thread_index(), all_slots, tile.stride);
      differentiate_token(work, scores, tile, simt::thread_index());
    }
    // Products begin with a barrier.
    const Path of_logits{scores.attn, in.query, in.scale}, of_values{scores.chosen, work.grad_updates, 1.0f};
    if (shape.sums != nullptr) {
      add_weighted_tokens<T>(shape.sums + static_cast<int64_t>(simt::block_x()) * all_slots * key_width, number == 0, scores.staged,
                             scores.attn, in.key, in, tile, key_width);
    }
    if (work.grad_key.data != nullptr) {
      write_tokens<T>(work.grad_key, scores.staged, of_logits, of_values, in.shared ? 2 : 1, in, tile, key_width);
    }
    if (work.grad_value.data != nullptr) {
      write_tokens<T>(work.grad_value, scores.staged, of_values, of_values, 1, in, tile, value_width);
    }
    simt::sync_threads();  // nobody reads the scores any more
  }
}

}  // namespace ocl::slot_attention

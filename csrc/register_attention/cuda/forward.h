// Register attention forward on tensor cores: output = P [value; register_value], P = exact softmax of all K + R <= 128 scores.
//
// A block has one head and walks a run of (image, tile of queries). Keys and values of the head stay in shared memory: registers
// are loaded once, slots again when the image changes. Slots come first, so that masks and maps touch few key tiles. A warp owns
// 16 * row_tiles queries of each tile and waits for other warps only where the slots change: its queries are double-buffered, it
// holds all their scores in registers (no online rescaling), its rounded probabilities are the left operand of the second product
// as they stand, and its output leaves through the shared memory of its queries, in 16-byte pieces of rows.
// Lane 4 * group + quad holds rows group, group + 8 and keys 8 j + 2 quad, 8 j + 2 quad + 1 of key tile j.
// Shared memory: keys, values [8 * key_tiles][padded width]; queries [warps][2][16 * row_tiles][padded width].
// Exact tiles: a width of 16 n + 8 ends in one product of depth 8, and so does an odd number of key tiles.
#pragma once

#include "register_attention/cuda/common.h"
#include "register_attention/cuda/table.h"

namespace ocl::register_attention {

struct ForwardShape {
  int parts = 0;  // blocks per head
  int warps = 0;  // of a block
  int rows = 0;   // queries per tile: warps * 16 * row_tiles
  int tiles_per_image = 0;
  float* maps = nullptr;  // probabilities of slots per head [B, H, K, M], or null
};

template <class T, int width, int key_tiles>
struct ForwardWarp {
  static constexpr int row_tiles = forward_tile(width, key_tiles).row_tiles;
  static constexpr int stride = padded_width<width>;
  static constexpr int chunks = chunks_of<width>;
  static constexpr int rows = 16 * row_tiles;
  static constexpr int keys = 8 * key_tiles;

  using Scores = float[row_tiles][key_tiles][4];
  using Probabilities = uint32_t[row_tiles][key_tiles][2];  // rounded to T, two neighbouring keys in a word

  // Starts copying the warp's queries of a tile; rows past the image become zeros.
  OCL_DEVICE static void load_queries(T* buffer, const RegisterAttention& in, int image, int head, int first_row) {
    const T* query = slice_of<const T>(in.query, image, head);
    const int row_stride = static_cast<int>(in.query.row), last_row = static_cast<int>(in.M);
    WarpRows<width>::template each<rows, 1>(0, [&](int row, int column) {
      const bool valid = first_row + row < last_row;
      simt::copy_async_16(buffer + row * stride + column, row_of(query, valid ? first_row + row : 0, row_stride) + column, valid);
    });
  }

  // score = query . key
  OCL_DEVICE static void multiply_keys(Scores& score, const T* queries, const T* keys_shared) {
    const int lane = lane_index();
    OCL_UNROLL
    for (int tile = 0; tile < row_tiles; ++tile) {
      OCL_UNROLL
      for (int j = 0; j < key_tiles; ++j) score[tile][j][0] = score[tile][j][1] = score[tile][j][2] = score[tile][j][3] = 0.0f;
    }
    OCL_UNROLL
    for (int depth = 0; depth + 16 <= width; depth += 16) {
      uint32_t a[row_tiles][4];
      OCL_UNROLL
      for (int tile = 0; tile < row_tiles; ++tile) {
        simt::ldmatrix_x4(a[tile], queries + (16 * tile + lane % 16) * stride + depth + lane / 16 * 8);
      }
      OCL_UNROLL
      for (int j = 0; j < key_tiles; j += 2) {
        uint32_t b[4];
        if (j + 1 < key_tiles) {
          simt::ldmatrix_x4(b, keys_shared + (8 * j + lane % 8 + lane / 16 * 8) * stride + depth + lane / 8 % 2 * 8);
        } else {
          simt::ldmatrix_x2(b[0], b[1], keys_shared + (8 * j + lane % 8) * stride + depth + lane / 8 % 2 * 8);
        }
        OCL_UNROLL
        for (int tile = 0; tile < row_tiles; ++tile) {
          simt::mma_16x8x16<T>(score[tile][j], a[tile], b[0], b[1]);
          if (j + 1 < key_tiles) simt::mma_16x8x16<T>(score[tile][j + 1], a[tile], b[2], b[3]);
        }
      }
    }
    if constexpr (width % 16 != 0) multiply_keys_tail(score, queries, keys_shared);
  }

  // The last 8 columns of a width of 16 n + 8.
  OCL_DEVICE static void multiply_keys_tail(Scores& score, const T* queries, const T* keys_shared) {
    constexpr int depth = width / 16 * 16;
    const int lane = lane_index();
    uint32_t a[row_tiles][2];
    OCL_UNROLL
    for (int tile = 0; tile < row_tiles; ++tile) {
      simt::ldmatrix_x2(a[tile][0], a[tile][1], queries + (16 * tile + lane % 16) * stride + depth);
    }
    OCL_UNROLL
    for (int j = 0; j < key_tiles; j += 4) {
      const int key = 8 * j + lane < keys ? 8 * j + lane : keys - 1;
      uint32_t b[4];
      simt::ldmatrix_x4(b, keys_shared + key * stride + depth);
      OCL_UNROLL
      for (int i = 0; i < 4 && j + i < key_tiles; ++i) {
        OCL_UNROLL
        for (int tile = 0; tile < row_tiles; ++tile) simt::mma_16x8x8<T>(score[tile][j + i], a[tile][0], a[tile][1], b[i]);
      }
    }
  }

  // Which of the lane's keys are not attended: bit 2 j + e for key 8 j + 2 quad + e.
  OCL_DEVICE static uint32_t dead_keys(const RegisterAttention& in, int image) {
    const int quad = lane_index() % 4;
    const int64_t total = in.K + in.R;
    uint32_t dead = 0;
    for (int j = 0; j < key_tiles; ++j) {
      for (int e = 0; e < 2; ++e) {
        const int key = 8 * j + 2 * quad + e;
        if (key >= total || (key < in.K && !attended(in, image, key))) dead |= 1u << (2 * j + e);
      }
    }
    return dead;
  }

  // Whether key tile j may hold a key that is not attended: the same for all lanes.
  OCL_DEVICE static bool may_be_dead(const RegisterAttention& in, int j) {
    return 8 * j + 8 > in.K + in.R || (in.slot_mask != nullptr && 8 * j < in.K);
  }

  // Scores of 16 queries become exp(score - maximum), 0 for dead keys. normalizer[i] = 1 / sum, or 0 without any key, and
  // logsumexp[i], for rows group and group + 8.
  OCL_DEVICE static void softmax(float (&score)[key_tiles][4], float (&normalizer)[2], float (&logsumexp)[2],
                                 const RegisterAttention& in, uint32_t dead, float sink) {
    const float scale = in.scale * log2_e;
    float maximum[2] = {-infinity, -infinity}, sum[2] = {0.0f, 0.0f};
    OCL_UNROLL
    for (int j = 0; j < key_tiles; ++j) {
      if (may_be_dead(in, j)) {
        OCL_UNROLL
        for (int i = 0; i < 4; ++i) score[j][i] = dead >> (2 * j + i % 2) & 1u ? -infinity : score[j][i];
      }
      OCL_UNROLL
      for (int i = 0; i < 4; ++i) maximum[i / 2] = fmaxf(maximum[i / 2], score[j][i]);
    }
    OCL_UNROLL
    for (int i = 0; i < 2; ++i) {
      maximum[i] = fmaxf(maximum[i], simt::shuffle_xor(maximum[i], 1));
      maximum[i] = fmaxf(maximum[i], simt::shuffle_xor(maximum[i], 2));
      maximum[i] = fmaxf(maximum[i] * scale, sink);
      maximum[i] = maximum[i] == -infinity ? 0.0f : maximum[i];
    }
    OCL_UNROLL
    for (int j = 0; j < key_tiles; ++j) {
      OCL_UNROLL
      for (int i = 0; i < 4; ++i) {
        score[j][i] = simt::exp2_approx(score[j][i] * scale - maximum[i / 2]);
        sum[i / 2] += score[j][i];
      }
    }
    OCL_UNROLL
    for (int i = 0; i < 2; ++i) {
      sum[i] += simt::shuffle_xor(sum[i], 1);
      sum[i] += simt::shuffle_xor(sum[i], 2);
      sum[i] += simt::exp2_approx(sink - maximum[i]);
      normalizer[i] = sum[i] > 0.0f ? 1.0f / sum[i] : 0.0f;
      logsumexp[i] = sum[i] > 0.0f ? (maximum[i] + simt::log2_approx(sum[i])) * log_2 : -infinity;
    }
  }

  OCL_DEVICE static void write_logsumexp(float* slice, const float (&logsumexp)[2], int first_row, const RegisterAttention& in) {
    const int row = first_row + lane_index() / 4, last_row = static_cast<int>(in.M);
    const bool first_of_quad = lane_index() % 4 == 0;
    if (first_of_quad && row < last_row) slice[row] = logsumexp[0];
    if (first_of_quad && row + 8 < last_row) slice[row + 8] = logsumexp[1];
  }

  // maps[slot][row] of one image and head.
  OCL_DEVICE static void write_maps(float* maps, const float (&probability)[key_tiles][4], const float (&normalizer)[2],
                                    int first_row, const RegisterAttention& in) {
    const int row = first_row + lane_index() / 4, slots = static_cast<int>(in.K), last_row = static_cast<int>(in.M);
    OCL_UNROLL
    for (int j = 0; j < key_tiles; ++j) {
      if (8 * j >= slots) break;
      OCL_UNROLL
      for (int e = 0; e < 2; ++e) {
        const int slot = 8 * j + lane_index() % 4 * 2 + e;
        float* address = row_of(maps, slot, last_row) + row;
        if (slot < slots && row < last_row) address[0] = probability[j][e] * normalizer[0];
        if (slot < slots && row + 8 < last_row) address[8] = probability[j][2 + e] * normalizer[1];
      }
    }
  }

  // Half the registers, and words that are fragments of a left operand as they stand.
  OCL_DEVICE static void round(uint32_t (&rounded)[key_tiles][2], const float (&probability)[key_tiles][4]) {
    OCL_UNROLL
    for (int j = 0; j < key_tiles; ++j) {
      OCL_UNROLL
      for (int i = 0; i < 2; ++i) rounded[j][i] = simt::pack2<T>(probability[j][2 * i], probability[j][2 * i + 1]);
    }
  }

  using Output = float[row_tiles][chunks][4];

  // output = probability . value
  OCL_DEVICE static void multiply_values(Output& output, const Probabilities& probability, const T* values) {
    const int lane = lane_index();
    OCL_UNROLL
    for (int tile = 0; tile < row_tiles; ++tile) {
      OCL_UNROLL
      for (int c = 0; c < chunks; ++c) output[tile][c][0] = output[tile][c][1] = output[tile][c][2] = output[tile][c][3] = 0.0f;
    }
    OCL_UNROLL
    for (int j = 0; j + 2 <= key_tiles; j += 2) {
      OCL_UNROLL
      for (int c = 0; c < chunks; c += 2) {
        uint32_t b[4];
        const T* address = values + (8 * j + lane % 16) * stride + 8 * c;
        if (c + 1 < chunks) {
          simt::ldmatrix_x4_trans(b, address + lane / 16 * 8);
        } else {
          simt::ldmatrix_x2_trans(b[0], b[1], address);
        }
        OCL_UNROLL
        for (int tile = 0; tile < row_tiles; ++tile) {
          const auto& p = probability[tile];
          const uint32_t a[4] = {p[j][0], p[j][1], p[j + 1][0], p[j + 1][1]};
          simt::mma_16x8x16<T>(output[tile][c], a, b[0], b[1]);
          if (c + 1 < chunks) simt::mma_16x8x16<T>(output[tile][c + 1], a, b[2], b[3]);
        }
      }
    }
    if constexpr (key_tiles % 2 != 0) multiply_values_tail(output, probability, values);
  }

  // The last key tile of an odd number.
  OCL_DEVICE static void multiply_values_tail(Output& output, const Probabilities& probability, const T* values) {
    constexpr int j = key_tiles - 1;
    const int lane = lane_index();
    OCL_UNROLL
    for (int c = 0; c < chunks; c += 4) {
      const int column = c + lane / 8 < chunks ? c + lane / 8 : chunks - 1;
      uint32_t b[4];
      simt::ldmatrix_x4_trans(b, values + (8 * j + lane % 8) * stride + 8 * column);
      OCL_UNROLL
      for (int i = 0; i < 4 && c + i < chunks; ++i) {
        OCL_UNROLL
        for (int tile = 0; tile < row_tiles; ++tile) {
          simt::mma_16x8x8<T>(output[tile][c + i], probability[tile][j][0], probability[tile][j][1], b[i]);
        }
      }
    }
  }

  // Rounds one row tile into the queries' place in shared memory.
  OCL_DEVICE static void stage_output(T* staged, const float (&output)[chunks][4], const float (&normalizer)[2]) {
    const int group = lane_index() / 4, quad = lane_index() % 4;
    OCL_UNROLL
    for (int c = 0; c < chunks; ++c) {
      OCL_UNROLL
      for (int i = 0; i < 2; ++i) {
        auto* word = reinterpret_cast<uint32_t*>(staged + (group + 8 * i) * stride + 8 * c + 2 * quad);
        *word = simt::pack2<T>(output[c][2 * i] * normalizer[i], output[c][2 * i + 1] * normalizer[i]);
      }
    }
  }

  OCL_DEVICE static void write_output(const T* staged, const View& view, int image, int head, int first_row, int last_row) {
    T* output = slice_of<T>(view, image, head);
    const int row_stride = static_cast<int>(view.row);
    WarpRows<width>::template each<rows, 1>(0, [&](int row, int column) {
      if (first_row + row >= last_row) return;
      const auto piece = *reinterpret_cast<const simt::Uint4*>(staged + row * stride + column);
      *reinterpret_cast<simt::Uint4*>(row_of(output, first_row + row, row_stride) + column) = piece;
    });
  }

  // All of one tile of the warp, whose queries have landed in `buffer`.
  OCL_DEVICE static void compute(T* buffer, const T* keys_shared, const T* values, const RegisterAttentionForward& work,
                                 const ForwardShape& shape, int image, int head, int first_row, uint32_t dead, float sink) {
    const RegisterAttention& in = work.in;
    const int slice = image * static_cast<int>(in.H) + head;
    Scores score;
    Probabilities probability;
    float normalizer[row_tiles][2];
    multiply_keys(score, buffer, keys_shared);
    OCL_UNROLL
    for (int tile = 0; tile < row_tiles; ++tile) {
      float logsumexp[2];
      softmax(score[tile], normalizer[tile], logsumexp, in, dead, sink);
      if (work.logsumexp != nullptr) write_logsumexp(work.logsumexp + slice * in.M, logsumexp, first_row + 16 * tile, in);
      if (shape.maps != nullptr) {
        write_maps(shape.maps + slice * in.K * in.M, score[tile], normalizer[tile], first_row + 16 * tile, in);
      }
      round(probability[tile], score[tile]);
    }
    Output output;
    multiply_values(output, probability, values);
    simt::sync_warp();  // every lane has read the queries
    OCL_UNROLL
    for (int tile = 0; tile < row_tiles; ++tile) stage_output(buffer + 16 * tile * stride, output[tile], normalizer[tile]);
    simt::sync_warp();  // the output of other lanes is staged
    write_output(buffer, work.output, image, head, first_row, static_cast<int>(in.M));
  }
};

template <class T, int width, int key_tiles>
OCL_KERNEL void OCL_LAUNCH_BOUNDS(32 * forward_tile(width, key_tiles).warps, forward_tile(width, key_tiles).resident)
    forward_kernel(const RegisterAttentionForward work, const ForwardShape shape) {
  using Warp = ForwardWarp<T, width, key_tiles>;
  OCL_DYNAMIC_SHARED(shared);
  const RegisterAttention& in = work.in;
  const int threads = 32 * shape.warps, warp = warp_index();
  T* const keys = reinterpret_cast<T*>(shared);
  T* const values = keys + Warp::keys * Warp::stride;
  constexpr int buffer_size = Warp::rows * Warp::stride;
  T* const queries = values + Warp::keys * Warp::stride + 2 * warp * buffer_size;

  const Run run = run_of_block(static_cast<int>(in.H), shape.parts, in.B * shape.tiles_per_image);
  if (run.first == run.last) return;
  const auto first_row = [&](const Item& item) { return (item.tile * shape.warps + warp) * Warp::rows; };
  const float sink = in.sink_logits != nullptr ? in.sink_logits[run.head] * log2_e : -infinity;

  Item item{run.first / shape.tiles_per_image, run.first % shape.tiles_per_image};
  load_registers<T, width>(keys, values, in, run.head, Warp::keys, threads);
  int left = run.last - run.first;  // its parity chooses the buffer
  Warp::load_queries(queries + left % 2 * buffer_size, in, item.image, run.head, first_row(item));
  uint32_t dead = 0;
  bool new_image = true;
  for (; left > 0; --left) {
    if (new_image) {
      simt::sync_threads();  // nobody reads the slots of the last image any more
      load_slots<T, width>(keys, values, in, item.image, run.head, threads);
      simt::copy_async_commit();
      dead = Warp::dead_keys(in, item.image);
      simt::copy_async_wait<0>();
      simt::sync_threads();  // keys and values have landed
    }
    const Item next = item.next(shape.tiles_per_image);
    // The other buffer held staged output: a lane overwrites the pieces that it wrote out itself.
    if (left > 1) Warp::load_queries(queries + (left - 1) % 2 * buffer_size, in, next.image, run.head, first_row(next));
    simt::copy_async_commit();
    simt::copy_async_wait<1>();
    simt::sync_warp();  // the queries that other lanes copied have landed too
    if (first_row(item) < in.M) {
      Warp::compute(queries + left % 2 * buffer_size, keys, values, work, shape, item.image, run.head, first_row(item), dead, sink);
    }
    item = item.next(shape.tiles_per_image);
    new_image = item.tile == 0;
  }
}

}  // namespace ocl::register_attention

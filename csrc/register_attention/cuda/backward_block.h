// Register attention backward on tensor cores, in one pass over the queries and without atomics:
//   P^T = exp(scale * key . query - logsumexp)    dP^T = value . grad_output (+ grad_maps / H for slots)
//   delta = sum over keys of P dP                 dS = P (dP - delta)
//   grad_value = P^T grad_output    grad_key = scale dS^T query    grad_query = scale dS key    grad_sink = -sum of p_sink delta
// Scores are transposed, keys by queries: a warp owns 16 * blocks_per_warp of all K + R <= 128 keys, and its P^T and dS^T are left
// operands of the products that it sums in registers. Only delta (a sum over warps) and grad_query (which needs dS of all keys)
// pass through shared memory, with a barrier each. No output of the forward is read but logsumexp.
//
// A block has one head and walks a run of (image, chunk of queries). Gradients of slots leave as partial sums of a chunk, those of
// registers and the sink as partial sums of the block; reduce.h adds both up in a fixed order. Chunks are cut at the same rows
// whatever the batch, so that the gradients of an image do not depend on it.
// Lane 4 * group + quad holds keys group, group + 8 of a block of 16 and queries 8 j + 2 quad, 8 j + 2 quad + 1 of the tile.
// Shared memory: keys, values [keys][padded width]; queries, grads [stages][rows][padded width]; dS [keys][rows + 8]; partial
// deltas [warps][rows]; logsumexp [2][rows].
#pragma once

#include "register_attention/cuda/common.h"
#include "register_attention/cuda/table.h"

namespace ocl::register_attention {

struct BackwardShape {
  int parts = 0;            // blocks per head
  int chunks = 0;           // of an image
  int rows = 0;             // queries per tile
  int tiles_per_chunk = 0;  // the last chunk may have fewer
  int tiles_per_image = 0;
  int stages = 0;  // 2: the next tile is copied while this one is computed; 1: where shared memory is short
  // Partial sums, in float: of slots [B, H, chunks, K, D], of registers [H, parts, R, D], of sinks [H, parts]. Null: not wanted.
  float* slot_key = nullptr;
  float* slot_value = nullptr;
  float* register_key = nullptr;
  float* register_value = nullptr;
  float* sink = nullptr;
};

// Items of work are chunks of images: the first tile of a chunk.
OCL_DEVICE Item first_of_chunk(int chunk, const BackwardShape& shape) {
  return {chunk / shape.chunks, chunk % shape.chunks * shape.tiles_per_chunk};
}

template <class T, int width, int key_blocks>
struct BackwardBlock {
  static constexpr BackwardTile tile = backward_tile(width, key_blocks);
  static constexpr int stride = padded_width<width>;
  static constexpr int chunks = chunks_of<width>;
  static constexpr int blocks = tile.blocks_per_warp;  // of 16 keys, of a warp
  static constexpr int warps = key_blocks / blocks;
  static constexpr int threads = 32 * warps;
  static constexpr int keys = 16 * key_blocks;
  static constexpr int rows = tile.rows;
  static constexpr int row_tiles = rows / 8;
  static constexpr int score_stride = rows + 8;  // an odd number of 16-byte chunks
  static constexpr int tile_size = rows * stride;
  static_assert(key_blocks % blocks == 0 && rows % 32 == 0 && rows <= threads, "one thread per row, whole blocks per warp");

  struct Memory {
    T *keys, *values, *queries, *grads, *scores;
    float *deltas, *logsumexps;

    OCL_DEVICE Memory(unsigned char* shared, int stages)
        : keys(reinterpret_cast<T*>(shared)),
          values(keys + BackwardBlock::keys * stride),
          queries(values + BackwardBlock::keys * stride),
          grads(queries + stages * tile_size),
          scores(grads + stages * tile_size),
          deltas(reinterpret_cast<float*>(scores + BackwardBlock::keys * score_stride)),
          logsumexps(deltas + warps * rows) {}
  };

  struct alignas(8) Pair {
    float x, y;
  };

  using Scores = float[blocks][row_tiles][4];
  using Fragments = uint32_t[blocks][row_tiles][2];  // rounded to T, two neighbouring queries in a word
  using Gradients = float[blocks][chunks][4];

  // Starts copying the queries and output gradients of a tile; rows past the image become zeros.
  OCL_DEVICE static void load_tile(T* queries, T* grads, const RegisterAttentionBackward& work, const Item& item, int head) {
    const T* query = slice_of<const T>(work.in.query, item.image, head);
    const T* grad = slice_of<const T>(work.grad_output, item.image, head);
    const int query_stride = static_cast<int>(work.in.query.row), grad_stride = static_cast<int>(work.grad_output.row);
    const int first_row = item.tile * rows, last_row = static_cast<int>(work.in.M);
    WarpRows<width>::template each<rows, warps>(warp_index(), [&](int row, int column) {
      const bool valid = first_row + row < last_row;
      const int source = valid ? first_row + row : 0;
      simt::copy_async_16(queries + row * stride + column, row_of(query, source, query_stride) + column, valid);
      simt::copy_async_16(grads + row * stride + column, row_of(grad, source, grad_stride) + column, valid);
    });
  }

  // In units of log 2. Rows past the image and rows without a key give infinity, hence probabilities of 0.
  OCL_DEVICE static float load_logsumexp(const RegisterAttentionBackward& work, const Item& item, int head) {
    const int row = item.tile * rows + simt::thread_index();
    if (simt::thread_index() >= rows || row >= work.in.M) return infinity;
    const float value = work.logsumexp[(item.image * work.in.H + head) * work.in.M + row];
    return value == -infinity ? infinity : value * log2_e;
  }

  // Which of the lane's keys are not attended: bit 2 block + i for key group + 8 i of a block.
  OCL_DEVICE static uint32_t dead_keys(const RegisterAttention& in, int image) {
    uint32_t dead = 0;
    for (int block = 0; block < blocks; ++block) {
      for (int i = 0; i < 2; ++i) {
        const int key = first_key(block) + lane_index() / 4 + 8 * i;
        if (key >= in.K + in.R || (key < in.K && !attended(in, image, key))) dead |= 1u << (2 * block + i);
      }
    }
    return dead;
  }

  OCL_DEVICE static int first_key(int block) { return 16 * (warp_index() * blocks + block); }

  // product[key][row] = left[key] . right[row]
  OCL_DEVICE static void multiply(Scores& product, const T* left, const T* right) {
    const int lane = lane_index();
    OCL_UNROLL
    for (int block = 0; block < blocks; ++block) {
      OCL_UNROLL
      for (int j = 0; j < row_tiles; ++j)
        product[block][j][0] = product[block][j][1] = product[block][j][2] = product[block][j][3] = 0.0f;
    }
    OCL_UNROLL
    for (int depth = 0; depth + 16 <= width; depth += 16) {
      uint32_t a[blocks][4];
      OCL_UNROLL
      for (int block = 0; block < blocks; ++block) {
        simt::ldmatrix_x4(a[block], left + (first_key(block) + lane % 16) * stride + depth + lane / 16 * 8);
      }
      OCL_UNROLL
      for (int j = 0; j < row_tiles; j += 2) {
        uint32_t b[4];
        simt::ldmatrix_x4(b, right + (8 * j + lane % 8 + lane / 16 * 8) * stride + depth + lane / 8 % 2 * 8);
        OCL_UNROLL
        for (int block = 0; block < blocks; ++block) {
          simt::mma_16x8x16<T>(product[block][j], a[block], b[0], b[1]);
          simt::mma_16x8x16<T>(product[block][j + 1], a[block], b[2], b[3]);
        }
      }
    }
    if constexpr (width % 16 != 0) multiply_tail(product, left, right);
  }

  // The last 8 columns of a width of 16 n + 8.
  OCL_DEVICE static void multiply_tail(Scores& product, const T* left, const T* right) {
    constexpr int depth = width / 16 * 16;
    const int lane = lane_index();
    uint32_t a[blocks][2];
    OCL_UNROLL
    for (int block = 0; block < blocks; ++block) {
      simt::ldmatrix_x2(a[block][0], a[block][1], left + (first_key(block) + lane % 16) * stride + depth);
    }
    OCL_UNROLL
    for (int j = 0; j < row_tiles; j += 4) {
      uint32_t b[4];
      simt::ldmatrix_x4(b, right + (8 * j + lane) * stride + depth);
      OCL_UNROLL
      for (int i = 0; i < 4; ++i) {
        OCL_UNROLL
        for (int block = 0; block < blocks; ++block) simt::mma_16x8x8<T>(product[block][j + i], a[block][0], a[block][1], b[i]);
      }
    }
  }

  // What an array over the rows of a tile holds for the lane's two rows of row tile j.
  OCL_DEVICE static Pair load_pair(const float* of_rows, int j) {
    return *reinterpret_cast<const Pair*>(of_rows + 8 * j + lane_index() % 4 * 2);
  }

  // Scores become probabilities.
  OCL_DEVICE static void normalize(Scores& score, const float* logsumexp, float scale, uint32_t dead) {
    OCL_UNROLL
    for (int j = 0; j < row_tiles; ++j) {
      const Pair of_rows = load_pair(logsumexp, j);
      OCL_UNROLL
      for (int block = 0; block < blocks; ++block) {
        OCL_UNROLL
        for (int i = 0; i < 4; ++i) {
          float& value = score[block][j][i];
          value = simt::exp2_approx(value * scale - (i % 2 == 0 ? of_rows.x : of_rows.y));
          if (dead >> (2 * block + i / 2) & 1u) value = 0.0f;
        }
      }
    }
  }

  // dP of slots += grad_maps / H
  OCL_DEVICE static void add_grad_maps(Scores& grad, const RegisterAttentionBackward& work, const Item& item) {
    const int first_row = item.tile * rows + lane_index() % 4 * 2;
    const int slots = static_cast<int>(work.in.K), last_row = static_cast<int>(work.in.M);
    const float share = 1.0f / static_cast<float>(work.in.H);
    const float* maps = work.grad_maps + item.image * work.in.K * work.in.M + first_row;
    OCL_UNROLL
    for (int block = 0; block < blocks; ++block) {
      OCL_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int slot = first_key(block) + lane_index() / 4 + 8 * i;
        if (slot >= slots) break;
        const float* map = row_of(maps, slot, last_row);
        OCL_UNROLL
        for (int j = 0; j < row_tiles; ++j) {
          if (first_row + 8 * j < last_row) grad[block][j][2 * i] += share * map[8 * j];
          if (first_row + 8 * j + 1 < last_row) grad[block][j][2 * i + 1] += share * map[8 * j + 1];
        }
      }
    }
  }

  // Two lanes add up 2 * kept sums; each keeps half of them.
  template <int kept>
  OCL_DEVICE static void exchange(float (&sum)[rows / 4], int mask) {
    const bool upper = (lane_index() & mask) != 0;
    OCL_UNROLL
    for (int v = 0; v < kept; ++v) {
      const float mine = upper ? sum[v + kept] : sum[v], theirs = upper ? sum[v] : sum[v + kept];
      sum[v] = mine + simt::shuffle_xor(theirs, mask);
    }
  }

  // partial[row] = sum over the warp's keys of P dP. Lanes with the same rows end up with different ones.
  OCL_DEVICE static void sum_over_keys(float* partial, const Scores& probability, const Scores& grad) {
    constexpr int values = rows / 4;  // rows of a lane
    float sum[values];
    OCL_UNROLL
    for (int v = 0; v < values; ++v) {
      sum[v] = 0.0f;
      OCL_UNROLL
      for (int block = 0; block < blocks; ++block) {
        OCL_UNROLL
        for (int i = 0; i < 2; ++i) sum[v] += probability[block][v / 2][2 * i + v % 2] * grad[block][v / 2][2 * i + v % 2];
      }
    }
    exchange<values / 2>(sum, 16);
    exchange<values / 4>(sum, 8);
    exchange<values / 8>(sum, 4);
    OCL_UNROLL
    for (int v = 0; v < values / 8; ++v) {
      const int index = lane_index() / 4 * (values / 8) + v;
      partial[index / 2 * 8 + lane_index() % 4 * 2 + index % 2] = sum[v];
    }
  }

  // delta of the lane's rows, from the partial sums of all warps.
  OCL_DEVICE static void load_deltas(float (&delta)[rows / 4], const float* partial) {
    OCL_UNROLL
    for (int j = 0; j < row_tiles; ++j) {
      Pair sum = load_pair(partial, j);
      OCL_UNROLL
      for (int warp = 1; warp < warps; ++warp) {
        const Pair more = load_pair(partial + warp * rows, j);
        sum.x += more.x;
        sum.y += more.y;
      }
      delta[2 * j] = sum.x;
      delta[2 * j + 1] = sum.y;
    }
  }

  OCL_DEVICE static float sink_sum(const float (&delta)[rows / 4], const float* logsumexp, float sink) {
    float sum = 0.0f;
    OCL_UNROLL
    for (int j = 0; j < row_tiles; ++j) {
      const Pair of_rows = load_pair(logsumexp, j);
      sum += simt::exp2_approx(sink - of_rows.x) * delta[2 * j] + simt::exp2_approx(sink - of_rows.y) * delta[2 * j + 1];
    }
    return sum;
  }

  // grad becomes dS = P (dP - delta).
  OCL_DEVICE static void through_softmax(Scores& grad, const Scores& probability, const float (&delta)[rows / 4]) {
    OCL_UNROLL
    for (int block = 0; block < blocks; ++block) {
      OCL_UNROLL
      for (int j = 0; j < row_tiles; ++j) {
        OCL_UNROLL
        for (int i = 0; i < 4; ++i) grad[block][j][i] = probability[block][j][i] * (grad[block][j][i] - delta[2 * j + i % 2]);
      }
    }
  }

  OCL_DEVICE static void round(Fragments& rounded, const Scores& value) {
    OCL_UNROLL
    for (int block = 0; block < blocks; ++block) {
      OCL_UNROLL
      for (int j = 0; j < row_tiles; ++j) {
        OCL_UNROLL
        for (int i = 0; i < 2; ++i) rounded[block][j][i] = simt::pack2<T>(value[block][j][2 * i], value[block][j][2 * i + 1]);
      }
    }
  }

  // scores[key][row]
  OCL_DEVICE static void store_scores(T* scores, const Fragments& value) {
    const int group = lane_index() / 4, quad = lane_index() % 4;
    OCL_UNROLL
    for (int block = 0; block < blocks; ++block) {
      OCL_UNROLL
      for (int j = 0; j < row_tiles; ++j) {
        OCL_UNROLL
        for (int i = 0; i < 2; ++i) {
          T* address = scores + (first_key(block) + group + 8 * i) * score_stride + 8 * j + 2 * quad;
          *reinterpret_cast<uint32_t*>(address) = value[block][j][i];
        }
      }
    }
  }

  // sum[key] += sum over rows of left[key][row] right[row], for the first `count` blocks of the warp.
  template <int count>
  OCL_DEVICE static void accumulate_blocks(Gradients& sum, const Fragments& left, const T* right) {
    const int lane = lane_index();
    OCL_UNROLL
    for (int j = 0; j < row_tiles; j += 2) {
      OCL_UNROLL
      for (int c = 0; c < chunks; c += 2) {
        uint32_t b[4];
        const T* address = right + (8 * j + lane % 16) * stride + 8 * c;
        if (c + 1 < chunks) {
          simt::ldmatrix_x4_trans(b, address + lane / 16 * 8);
        } else {
          simt::ldmatrix_x2_trans(b[0], b[1], address);
        }
        OCL_UNROLL
        for (int block = 0; block < count; ++block) {
          const auto& l = left[block];
          const uint32_t a[4] = {l[j][0], l[j][1], l[j + 1][0], l[j + 1][1]};
          simt::mma_16x8x16<T>(sum[block][c], a, b[0], b[1]);
          if (c + 1 < chunks) simt::mma_16x8x16<T>(sum[block][c + 1], a, b[2], b[3]);
        }
      }
    }
  }

  OCL_DEVICE static void accumulate(Gradients& sum, const Fragments& left, const T* right, int wanted_blocks) {
    if (wanted_blocks == blocks) {
      accumulate_blocks<blocks>(sum, left, right);
    } else if (wanted_blocks == 1) {
      accumulate_blocks<1>(sum, left, right);
    }
  }

  // How many blocks of the warp, from its first on, own a key whose gradient is wanted.
  OCL_DEVICE static int count_wanted(const RegisterAttention& in, bool slots, bool registers) {
    const int64_t first = slots ? 0 : in.K, last = registers ? in.K + in.R : in.K;
    int count = 0;
    for (int block = 0; block < blocks; ++block) {
      if (first_key(block) < last && first_key(block) + 16 > first) count = block + 1;
    }
    return count;
  }

  // How the warps share the products of grad_query: tasks of `together` row blocks of 16 by pairs_of_task pairs of column chunks,
  // few enough for the registers that held scores.
  static constexpr int row_blocks = rows / 16, together = blocks == 1 ? 1 : row_blocks, row_tasks = row_blocks / together;
  static constexpr int pairs = (chunks + 1) / 2, even_share = (pairs * row_tasks + warps - 1) / warps;
  static constexpr int pairs_of_task = even_share < 4 / together ? even_share : 4 / together;
  static constexpr int column_tasks = (pairs + pairs_of_task - 1) / pairs_of_task;

  using TaskSum = float[together][2 * pairs_of_task][4];

  // sum[row][column] = sum over keys of scores[key][row] keys[key][column]
  OCL_DEVICE static void multiply_task(TaskSum& sum, const T* scores, const T* keys_shared, int first_row, int first_pair) {
    const int lane = lane_index();
    OCL_UNROLL
    for (int r = 0; r < together; ++r) {
      OCL_UNROLL
      for (int c = 0; c < 2 * pairs_of_task; ++c) sum[r][c][0] = sum[r][c][1] = sum[r][c][2] = sum[r][c][3] = 0.0f;
    }
    OCL_UNROLL
    for (int block = 0; block < key_blocks; ++block) {
      uint32_t a[together][4];
      OCL_UNROLL
      for (int r = 0; r < together; ++r) {
        const int key = 16 * block + lane % 8 + lane / 16 * 8, row = first_row + 16 * r + lane / 8 % 2 * 8;
        simt::ldmatrix_x4_trans(a[r], scores + key * score_stride + row);
      }
      OCL_UNROLL
      for (int p = 0; p < pairs_of_task; ++p) {
        const int c = 2 * (first_pair + p);
        if (c >= chunks) break;
        uint32_t b[4];
        const T* address = keys_shared + (16 * block + lane % 16) * stride + 8 * c;
        const bool both = chunks % 2 == 0 || c + 1 < chunks;
        if (both) {
          simt::ldmatrix_x4_trans(b, address + lane / 16 * 8);
        } else {
          simt::ldmatrix_x2_trans(b[0], b[1], address);
        }
        OCL_UNROLL
        for (int r = 0; r < together; ++r) {
          simt::mma_16x8x16<T>(sum[r][2 * p], a[r], b[0], b[1]);
          if (both) simt::mma_16x8x16<T>(sum[r][2 * p + 1], a[r], b[2], b[3]);
        }
      }
    }
  }

  OCL_DEVICE static void store_task(T* grad_query, int row_stride, const TaskSum& sum, float scale, int first_row, int last_row,
                                    int first_pair) {
    const int group = lane_index() / 4, quad = lane_index() % 4;
    OCL_UNROLL
    for (int r = 0; r < together; ++r) {
      OCL_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int row = first_row + 16 * r + group + 8 * i;
        if (row >= last_row) break;
        T* address = row_of(grad_query, row, row_stride) + 16 * first_pair + 2 * quad;
        OCL_UNROLL
        for (int c = 0; c < 2 * pairs_of_task; ++c) {
          if (2 * first_pair + c >= chunks) break;
          *reinterpret_cast<uint32_t*>(address + 8 * c) = simt::pack2<T>(sum[r][c][2 * i] * scale, sum[r][c][2 * i + 1] * scale);
        }
      }
    }
  }

  // grad_query of a tile. The last warps take tasks first: the first ones are busy with slots where registers are frozen.
  OCL_DEVICE static void write_grad_query(const RegisterAttentionBackward& work, const Item& item, int head, const Memory& memory) {
    T* grad_query = slice_of<T>(work.grad_query, item.image, head);
    const int row_stride = static_cast<int>(work.grad_query.row), last_row = static_cast<int>(work.in.M);
    OCL_NO_UNROLL
    for (int task = warps - 1 - warp_index(); task < row_tasks * column_tasks; task += warps) {
      const int first_row = task % row_tasks * together * 16, first_pair = task / row_tasks * pairs_of_task;
      TaskSum sum;
      multiply_task(sum, memory.scores, memory.keys, first_row, first_pair);
      store_task(grad_query, row_stride, sum, work.in.scale, item.tile * rows + first_row, last_row, first_pair);
    }
  }

  // Writes the sums of keys first .. last-1 to `partial` [last - first][width], and starts them again from zero.
  OCL_DEVICE static void flush(float* partial, Gradients& sum, int first, int last) {
    const int group = lane_index() / 4, quad = lane_index() % 4;
    OCL_UNROLL
    for (int block = 0; block < blocks; ++block) {
      OCL_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int key = first_key(block) + group + 8 * i;
        if (key < first || key >= last) continue;
        float* row = partial + static_cast<int64_t>(key - first) * width + 2 * quad;
        OCL_UNROLL
        for (int c = 0; c < chunks; ++c) {
          *reinterpret_cast<Pair*>(row + 8 * c) = {sum[block][c][2 * i], sum[block][c][2 * i + 1]};
          sum[block][c][2 * i] = sum[block][c][2 * i + 1] = 0.0f;
        }
      }
    }
  }

  // What the block computes, for its warp.
  struct Wanted {
    bool query, scores;    // scores: dS, hence dP and delta
    int of_key, of_value;  // how many of the warp's blocks, from its first on

    OCL_DEVICE Wanted(const RegisterAttentionBackward& work, const BackwardShape& shape)
        : query(work.grad_query.data != nullptr),
          scores(query || shape.slot_key != nullptr || shape.register_key != nullptr || shape.sink != nullptr),
          of_key(count_wanted(work.in, shape.slot_key != nullptr, shape.register_key != nullptr)),
          of_value(count_wanted(work.in, shape.slot_value != nullptr, shape.register_value != nullptr)) {}
  };

  // Sums over queries, in the registers of the warp that owns the keys; `sink` in those of the first warp.
  struct Sums {
    Gradients key, value;
    float sink;

    OCL_DEVICE Sums() : sink(0.0f) {
      OCL_UNROLL
      for (int block = 0; block < blocks; ++block) {
        OCL_UNROLL
        for (int c = 0; c < chunks; ++c) {
          OCL_UNROLL
          for (int i = 0; i < 4; ++i) key[block][c][i] = value[block][c][i] = 0.0f;
        }
      }
    }
  };

  // All of one tile, whose queries, gradients and logsumexp have landed. Ends without a barrier.
  OCL_DEVICE static void compute(Sums& sums, const RegisterAttentionBackward& work, const BackwardShape& shape,
                                 const Memory& memory, const Wanted& wanted, const Item& item, int head, const T* query,
                                 const T* grad, const float* logsumexp, uint32_t dead) {
    Scores probability, grad_score;
    Fragments rounded;
    multiply(probability, memory.keys, query);
    normalize(probability, logsumexp, work.in.scale * log2_e, dead);
    if (wanted.scores) {
      multiply(grad_score, memory.values, grad);
      if (work.grad_maps != nullptr) add_grad_maps(grad_score, work, item);
      sum_over_keys(memory.deltas + warp_index() * rows, probability, grad_score);
      simt::sync_threads();  // partial deltas are there
      float delta[rows / 4];
      load_deltas(delta, memory.deltas);
      if (shape.sink != nullptr && warp_index() == 0) {
        sums.sink -= sink_sum(delta, logsumexp, work.in.sink_logits[head] * log2_e);
      }
      through_softmax(grad_score, probability, delta);
      round(rounded, grad_score);
      if (wanted.query) store_scores(memory.scores, rounded);
      accumulate(sums.key, rounded, query, wanted.of_key);
    }
    if (wanted.of_value > 0) {
      round(rounded, probability);
      accumulate(sums.value, rounded, grad, wanted.of_value);
    }
    if (wanted.query) {
      simt::sync_threads();  // dS is there
      write_grad_query(work, item, head, memory);
    }
  }

  // At the end of a chunk of an image.
  OCL_DEVICE static void flush_slots(Sums& sums, const RegisterAttention& in, const BackwardShape& shape, const Item& item,
                                     int head) {
    const int slots = static_cast<int>(in.K);
    const int64_t chunk = (static_cast<int64_t>(item.image) * in.H + head) * shape.chunks + item.tile / shape.tiles_per_chunk;
    if (shape.slot_key != nullptr) flush(shape.slot_key + chunk * slots * width, sums.key, 0, slots);
    if (shape.slot_value != nullptr) flush(shape.slot_value + chunk * slots * width, sums.value, 0, slots);
  }

  // At the end of the block.
  OCL_DEVICE static void flush_registers(Sums& sums, const RegisterAttention& in, const BackwardShape& shape, int64_t part) {
    const int slots = static_cast<int>(in.K), total = static_cast<int>(in.K + in.R);
    const int64_t offset = part * in.R * width;
    if (shape.register_key != nullptr) flush(shape.register_key + offset, sums.key, slots, total);
    if (shape.register_value != nullptr) flush(shape.register_value + offset, sums.value, slots, total);
    if (shape.sink == nullptr || warp_index() != 0) return;
    sums.sink += simt::shuffle_xor(sums.sink, 1);
    sums.sink += simt::shuffle_xor(sums.sink, 2);
    if (lane_index() == 0) shape.sink[part] = sums.sink;
  }
};

}  // namespace ocl::register_attention

// Strips of keys and values on tensor cores: how a warp fetches them, and their products with slots.
#pragma once

#include <type_traits>

#include "slot_attention/cuda/common.h"

namespace ocl::slot_attention {

// The columns of keys or values that a warp owns. `width` 0: none.
struct Strip {
  int head = 0, first = 0, width = 0;

  OCL_DEVICE Strip(int warp, int64_t heads, int strips, int64_t columns) {
    if (warp >= heads * strips) return;
    head = warp / strips;
    first = warp % strips * strip_width;
    width = columns - first < strip_width ? static_cast<int>(columns) - first : strip_width;
  }
};

OCL_DEVICE int strip_offset(int row, int chunk) { return row * strip_width + (chunk ^ (row % 8)) * 8; }

// A warp starts copying rows first .. first + rows - 1; zeros for rows from `last` on, and for columns past the strip.
template <class T, int rows>
OCL_DEVICE void load_strip(T* strip, const T* source, int stride, int first, int last, int width) {
  const int lane = simt::opaque(lane_index()), chunk = lane % 8, lane_row = lane / 8;
  const T* address = source + static_cast<int64_t>(first + lane_row) * stride + 8 * chunk;
  const int valid_rows = 8 * chunk < width ? last - first - lane_row : 0;
  OCL_UNROLL
  for (int pass = 0; pass < rows; pass += 4) {
    simt::copy_async_16(strip + strip_offset(pass + lane_row, chunk), address, pass < valid_rows);
    address += 4 * static_cast<int64_t>(stride);
  }
}

// Waits until at most `stages` - 1 of the thread's committed groups of copies are under way.
OCL_DEVICE void wait_for_oldest(int stages) {
  switch (stages) {
    case 1: return simt::copy_async_wait<0>();
    case 2: return simt::copy_async_wait<1>();
    case 3: return simt::copy_async_wait<2>();
    default: return simt::copy_async_wait<3>();
  }
}

// The strips of a warp, tile after tile: `stages` places in its part of shared memory, filled in turn.
template <class T>
class Stream {
 public:
  OCL_DEVICE Stream(unsigned char* rings, const SlotAttention& in, const Shape& shape, int image, int chunk, const Strip& keys,
                    const Strip& values, bool with_values)
      : key_stride_(static_cast<int>(in.key.row)),
        value_stride_(static_cast<int>(in.value.row)),
        key_width_(keys.width),
        value_width_(values.width),
        step_(shape.cut.tile),
        group_(warp_index() / shape.warps),
        last_(static_cast<int>(in.N)),
        stages_(shape.stages),
        shared_(in.shared) {
    const int tokens = shape.cut.tiles_per_chunk * step_;  // of a chunk
    next_ = chunk * tokens;
    end_ = last_ - next_ < tokens ? last_ : next_ + tokens;
    ring_ = reinterpret_cast<T*>(rings) + warp_index() * stages_ * stage_size();
    if (keys.width > 0) key_ = slice_of<const T>(in.key, image, keys.head) + keys.first;
    if (values.width > 0 && with_values && !shared_) value_ = slice_of<const T>(in.value, image, values.head) + values.first;
    for (; place_ < stages_ - 1; ++place_) fetch();
  }

  OCL_DEVICE T* keys() const { return ring_ + place_ * stage_size(); }
  OCL_DEVICE T* values() const { return keys() + (shared_ ? 0 : strip_tile); }

  // The first token of the block's tile.
  OCL_DEVICE int first() const { return next_ - stages_ * step_; }

  // Goes to the next tile, if there is one. Returns once its strips have landed; those of later ones are on their way.
  OCL_DEVICE bool advance() {
    if (first() + step_ >= end_) return false;
    simt::sync_warp();  // every lane is done with the strips that are overwritten
    fetch();            // to the place of the last tile, the only one that is free
    place_ = place_ + 1 < stages_ ? place_ + 1 : 0;
    wait_for_oldest(stages_);
    simt::sync_warp();  // what other lanes copied has landed too
    return true;
  }

 private:
  OCL_DEVICE int stage_size() const { return shared_ ? strip_tile : 2 * strip_tile; }

  OCL_DEVICE void fetch() {
    if (next_ < end_) {
      const int token = next_ + group_ * tile_tokens;
      if (key_ != nullptr) load_strip<T, tile_tokens>(keys(), key_, key_stride_, token, last_, key_width_);
      if (value_ != nullptr) load_strip<T, tile_tokens>(values(), value_, value_stride_, token, last_, value_width_);
    }
    next_ += step_;
    simt::copy_async_commit();
  }

  T* ring_;
  const T *key_ = nullptr, *value_ = nullptr;  // null: not read
  int key_stride_, value_stride_, key_width_, value_width_, step_, group_, next_, end_, last_, stages_, place_ = 0;
  bool shared_;
};

// ---- Products of a strip

template <int slot_tiles>
using TileScores = float[slot_tiles][4];  // tokens group, group + 8; slots 8 j + 2 quad, + 1

template <int slot_tiles>
using StripSums = float[strip_blocks][slot_tiles][4];  // columns group, group + 8 of a block; slots 8 j + 2 quad, + 1

OCL_DEVICE const void* strip_rows(const void* strip, int row, int chunk) {
  return static_cast<const uint16_t*>(strip) + strip_offset(row, chunk);
}

template <int slot_tiles>
OCL_DEVICE void clear(TileScores<slot_tiles>& score) {
  OCL_UNROLL
  for (int j = 0; j < slot_tiles; ++j) score[j][0] = score[j][1] = score[j][2] = score[j][3] = 0.0f;
}

// Rows of tokens as the left operand of a product over columns.
template <class T>
OCL_DEVICE void load_tokens(uint32_t (&a)[4], const T* strip, int block) {
  const int lane = simt::opaque(lane_index());
  simt::ldmatrix_x4(a, strip_rows(strip, lane % 16, 2 * block + lane / 16));
}

// scores[warp][tile][token][slot]
template <int slot_tiles>
OCL_DEVICE void store_scores(float* scores, const TileScores<slot_tiles>& score) {
  const int lane = simt::opaque(lane_index()), group = lane / 4, quad = lane % 4;
  OCL_UNROLL
  for (int j = 0; j < slot_tiles; ++j) {
    OCL_UNROLL
    for (int i = 0; i < 2; ++i) {
      float* const pair = scores + j * places + (group + 8 * i) * 8 + 2 * quad;
      *reinterpret_cast<simt::Float2*>(pair) = {score[j][2 * i], score[j][2 * i + 1]};
    }
  }
}

// sum[column][slot] += sum over tokens of strip[token][column] weights[slot][token]
template <class T, int slot_tiles>
OCL_DEVICE void accumulate(StripSums<slot_tiles>& sum, const T* strip, const T* weights) {
  const int lane = simt::opaque(lane_index());
  uint32_t b[slot_tiles][2];
  OCL_UNROLL
  for (int j = 0; j < slot_tiles; ++j) simt::ldmatrix_x2(b[j][0], b[j][1], weights + 2 * j * 64 + lane % 16 * 8);
  OCL_UNROLL
  for (int block = 0; block < strip_blocks; ++block) {
    uint32_t a[4];
    simt::ldmatrix_x4_trans(a, strip_rows(strip, lane % 8 + lane / 16 * 8, 2 * block + lane / 8 % 2));
    OCL_UNROLL
    for (int j = 0; j < slot_tiles; ++j) simt::mma_16x8x16<T>(sum[block][j], a, b[j][0], b[j][1]);
  }
}

template <int slot_tiles>
OCL_DEVICE void clear(StripSums<slot_tiles>& sum) {
  OCL_UNROLL
  for (int block = 0; block < strip_blocks; ++block) {
    OCL_UNROLL
    for (int j = 0; j < slot_tiles; ++j) sum[block][j][0] = sum[block][j][1] = sum[block][j][2] = sum[block][j][3] = 0.0f;
  }
}

// Adds the sums of all groups to those of the first one, group by group. `exchange` holds 2 KiB per warp of a group; nobody uses
// it any more, but for the calling block's last barrier.
template <int slot_tiles>
OCL_DEVICE void add_groups(StripSums<slot_tiles>& sum, float* exchange, const Shape& shape) {
  const int mine = warp_index() / shape.warps, lane = lane_index();
  float* const place = exchange + warp_index() % shape.warps * strip_blocks * 4 * 32 + lane;
  OCL_NO_UNROLL
  for (int group = 1; group < shape.groups; ++group) {
    OCL_UNROLL
    for (int j = 0; j < slot_tiles; ++j) {
      simt::sync_threads();
      if (mine == group) {
        OCL_UNROLL
        for (int i = 0; i < 4 * strip_blocks; ++i) place[32 * i] = sum[i / 4][j][i % 4];
      }
      simt::sync_threads();
      if (mine == 0) {
        OCL_UNROLL
        for (int i = 0; i < 4 * strip_blocks; ++i) sum[i / 4][j][i % 4] += place[32 * i];
      }
    }
  }
}

// partial[slot][column], of the strip's head, for a matrix of `columns` columns.
template <int slot_tiles>
OCL_DEVICE void flush(float* partial, const StripSums<slot_tiles>& sum, const Strip& strip, int slots, int columns) {
  const int lane = simt::opaque(lane_index()), group = lane / 4, quad = lane % 4;
  OCL_UNROLL
  for (int j = 0; j < slot_tiles; ++j) {
    OCL_UNROLL
    for (int e = 0; e < 2; ++e) {
      const int slot = 8 * j + 2 * quad + e;
      if (slot >= slots) break;
      float* row = partial + static_cast<int64_t>(slot) * columns + strip.first;
      OCL_UNROLL
      for (int i = 0; i < 2 * strip_blocks; ++i) {
        if (8 * i + group < strip.width) row[8 * i + group] = sum[i / 2][j][i % 2 * 2 + e];
      }
    }
  }
}

// ---- Slots of a strip: columns of query, or of the gradient of updates

// Weights [slot][token] of a tile as left operands: words 0 and 1 for tokens group and group + 8, slots 8 j + 2 quad and + 1.
template <int slot_tiles>
using WeightFragments = uint32_t[slot_tiles][2];

template <class T, int slot_tiles>
OCL_DEVICE void load_weights(WeightFragments<slot_tiles>& fragments, const T* weights) {
  OCL_UNROLL
  for (int j = 0; j < slot_tiles; ++j) {
    simt::ldmatrix_x2_trans(fragments[j][0], fragments[j][1], weights + 2 * j * 64 + lane_index() % 16 * 8);
  }
}

using BlockGradient = float[2][4];  // tokens group, group + 8; 16 columns, as two fragments

// Columns of a head's slots in registers, as fragments of the right operand of a product over columns.
template <class T, int slot_tiles>
class RegisterRows {
 public:
  OCL_DEVICE RegisterRows(T* /*shared*/, const View& view, int image, const Strip& strip, int slots, bool /*first_group*/) {
    const int group = lane_index() / 4, quad = lane_index() % 4;
    const T* const rows = slice_of<const T>(view, image, strip.head) + strip.first;
    OCL_UNROLL
    for (int j = 0; j < slot_tiles; ++j) {
      const int slot = 8 * j + group;
      OCL_UNROLL
      for (int i = 0; i < 2 * strip_blocks; ++i) {
        const int column = 8 * i + 2 * quad;
        const bool valid = slot < slots && column < strip.width;
        words_[i / 2][j][i % 2] = valid ? *reinterpret_cast<const uint32_t*>(rows + slot * view.row + column) : 0;
      }
    }
  }

  // score = sum over the strip's columns of token . slot
  OCL_DEVICE void multiply(TileScores<slot_tiles>& score, const T* strip) const {
    clear<slot_tiles>(score);
    OCL_UNROLL
    for (int block = 0; block < strip_blocks; ++block) {
      uint32_t a[4];
      load_tokens(a, strip, block);
      OCL_UNROLL
      for (int j = 0; j < slot_tiles; ++j) simt::mma_16x8x16<T>(score[j], a, words_[block][j][0], words_[block][j][1]);
    }
  }

  // gradient[token][column] += sum over slots of weight[token][slot] slot[column], for a block of 16 columns
  OCL_DEVICE void spread(BlockGradient& gradient, const WeightFragments<slot_tiles>& weight, int block) const {
    OCL_UNROLL
    for (int half = 0; half < 2; ++half) {
      OCL_UNROLL
      for (int j = 0; j + 2 <= slot_tiles; j += 2) {
        const uint32_t a[4] = {weight[j][0], weight[j][1], weight[j + 1][0], weight[j + 1][1]};
        const uint32_t b0 = simt::transpose(words_[block][j][half]), b1 = simt::transpose(words_[block][j + 1][half]);
        simt::mma_16x8x16<T>(gradient[half], a, b0, b1);
      }
      if constexpr (slot_tiles % 2 != 0) {
        constexpr int j = slot_tiles - 1;
        simt::mma_16x8x8<T>(gradient[half], weight[j][0], weight[j][1], simt::transpose(words_[block][j][half]));
      }
    }
  }

 private:
  uint32_t words_[strip_blocks][slot_tiles][2];
};

// The same in shared memory, for more slots than registers hold. Rows are there after wait_for_oldest and a barrier.
template <class T, int slot_tiles>
class SharedRows {
 public:
  OCL_DEVICE SharedRows(T* shared, const View& view, int image, const Strip& strip, int slots, bool first_group) : rows_(shared) {
    if (!first_group || strip.width == 0) return;
    const T* const source = slice_of<const T>(view, image, strip.head) + strip.first;
    load_strip<T, 8 * slot_tiles>(shared, source, static_cast<int>(view.row), 0, slots, strip.width);
  }

  OCL_DEVICE void multiply(TileScores<slot_tiles>& score, const T* strip) const {
    const int lane = simt::opaque(lane_index());
    clear<slot_tiles>(score);
    OCL_UNROLL
    for (int block = 0; block < strip_blocks; ++block) {
      uint32_t a[4];
      load_tokens(a, strip, block);
      OCL_UNROLL
      for (int j = 0; j < slot_tiles; j += 2) {
        uint32_t b[4];
        if (j + 1 < slot_tiles) {
          simt::ldmatrix_x4(b, strip_rows(rows_, 8 * j + lane % 8 + lane / 16 * 8, 2 * block + lane / 8 % 2));
          simt::mma_16x8x16<T>(score[j + 1], a, b[2], b[3]);
        } else {
          simt::ldmatrix_x2(b[0], b[1], strip_rows(rows_, 8 * j + lane % 8, 2 * block + lane / 8 % 2));
        }
        simt::mma_16x8x16<T>(score[j], a, b[0], b[1]);
      }
    }
  }

  OCL_DEVICE void spread(BlockGradient& gradient, const WeightFragments<slot_tiles>& weight, int block) const {
    const int lane = simt::opaque(lane_index());
    OCL_UNROLL
    for (int j = 0; j + 2 <= slot_tiles; j += 2) {
      const uint32_t a[4] = {weight[j][0], weight[j][1], weight[j + 1][0], weight[j + 1][1]};
      uint32_t b[4];
      simt::ldmatrix_x4_trans(b, strip_rows(rows_, 8 * j + lane % 16, 2 * block + lane / 16));
      simt::mma_16x8x16<T>(gradient[0], a, b[0], b[1]);
      simt::mma_16x8x16<T>(gradient[1], a, b[2], b[3]);
    }
    if constexpr (slot_tiles % 2 != 0) {
      constexpr int j = slot_tiles - 1;
      uint32_t b[2];
      simt::ldmatrix_x2_trans(b[0], b[1], strip_rows(rows_, 8 * j + lane % 8, 2 * block + lane / 8 % 2));
      simt::mma_16x8x8<T>(gradient[0], weight[j][0], weight[j][1], b[0]);
      simt::mma_16x8x8<T>(gradient[1], weight[j][0], weight[j][1], b[1]);
    }
  }

 private:
  const T* rows_;
};

template <class T, int slot_tiles, bool in_registers>
using Rows = std::conditional_t<in_registers, RegisterRows<T, slot_tiles>, SharedRows<T, slot_tiles>>;

}  // namespace ocl::slot_attention

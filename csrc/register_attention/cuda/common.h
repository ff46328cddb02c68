// What the tensor-core kernels of register attention share: shared-memory rows, loading keys, masks, persistent work.
#pragma once

#include <cstdint>

#include "ocl/cuda/kernel.h"
#include "register_attention/kernel.h"

namespace ocl::register_attention {

using simt::bfloat16;
using simt::float16;
using simt::infinity;
using simt::lane_index;
using simt::log2_e;
using simt::slice_of;
using simt::warp_index;

constexpr float log_2 = 0.6931471805599453f;

// Shared-memory rows hold an odd number of 16-byte chunks: ldmatrix then meets no bank conflict.
template <int width>
constexpr int padded_width = width / 8 % 2 != 0 ? width : width + 8;

template <int width>
constexpr int chunks_of = width / 8;

// Row `row` of a [rows, D] slice. Strides between rows fit 32 bits (plan.h sees to it): one multiply-add per address.
template <class T>
OCL_DEVICE T* row_of(T* slice, int row, int stride) {
  return slice + static_cast<int64_t>(row) * stride;
}

OCL_DEVICE bool attended(const RegisterAttention& in, int image, int slot) {
  return in.slot_mask == nullptr || in.slot_mask[image * in.K + slot] != 0;
}

// Starts copying the slots of an image to rows 0 .. K-1 of `keys` and `values`. Masked slots become zeros, whatever they hold.
template <class T, int width>
OCL_DEVICE void load_slots(T* keys, T* values, const RegisterAttention& in, int image, int head, int threads) {
  const T* key = slice_of<const T>(in.key, image, head);
  const T* value = slice_of<const T>(in.value, image, head);
  const int size = static_cast<int>(in.K) * chunks_of<width>;
  for (int i = simt::thread_index(); i < size; i += threads) {
    const int row = i / chunks_of<width>, column = i % chunks_of<width> * 8;
    const bool valid = attended(in, image, row);
    simt::copy_async_16(keys + row * padded_width<width> + column, key + row * in.key.row + column, valid);
    simt::copy_async_16(values + row * padded_width<width> + column, value + row * in.value.row + column, valid);
  }
}

// Starts copying the registers to rows K .. K+R-1 of `keys` and `values`, and zeros to the rows after them.
template <class T, int width>
OCL_DEVICE void load_registers(T* keys, T* values, const RegisterAttention& in, int head, int rows, int threads) {
  const T* key = slice_of<const T>(in.register_key, 0, head);
  const T* value = slice_of<const T>(in.register_value, 0, head);
  const int first = static_cast<int>(in.K), size = (rows - first) * chunks_of<width>;
  for (int i = simt::thread_index(); i < size; i += threads) {
    const int row = i / chunks_of<width>, column = i % chunks_of<width> * 8;
    const bool valid = row < in.R;
    const int64_t source = valid ? row : 0;
    T* shared = keys + (first + row) * padded_width<width> + column;
    simt::copy_async_16(shared, valid ? key + source * in.register_key.row + column : key, valid);
    simt::copy_async_16(shared + (values - keys), valid ? value + source * in.register_value.row + column : value, valid);
  }
}

// How warps walk rows of 16-byte chunks: lanes_per_row lanes side by side, rows_per_pass rows of a warp at once. Steps from pass to
// pass are constants, which costs fewer registers than an even split of the chunks.
template <int width>
struct WarpRows {
  static constexpr int lanes_per_row = chunks_of<width> <= 10 ? chunks_of<width> : 4;
  static constexpr int rows_per_pass = 32 / lanes_per_row;
  static_assert(chunks_of<width> % lanes_per_row == 0, "every lane takes equally many chunks of a row");

  // visit(row, column of the chunk), shared by `warps` warps of which this is number `warp`.
  template <int rows, int warps, class Visit>
  OCL_DEVICE static void each(int warp, const Visit& visit) {
    const int lane_row = lane_index() / lanes_per_row, lane_column = lane_index() % lanes_per_row * 8;
    if (lane_row >= rows_per_pass) return;
    OCL_UNROLL
    for (int pass = 0; pass < rows; pass += warps * rows_per_pass) {
      const int row = pass + warp * rows_per_pass + lane_row;
      if (pass + warps * rows_per_pass > rows && row >= rows) return;
      OCL_UNROLL
      for (int column = 0; column < width; column += 8 * lanes_per_row) visit(row, column + lane_column);
    }
  }
};

// An item of work: a tile of queries of an image. Blocks with a fixed head share the items evenly, each a contiguous run.
struct Item {
  int image, tile;

  OCL_DEVICE Item next(int tiles_per_image) const {
    return tile + 1 < tiles_per_image ? Item{image, tile + 1} : Item{image + 1, 0};
  }
};

// Block index = part * heads + head: heads run fastest, because rows of neighbouring heads share 32-byte sectors.
struct Run {
  int head, part, first, last;
};

OCL_DEVICE Run run_of_block(int heads, int parts, int64_t items) {
  const int head = simt::block_x() % heads, part = simt::block_x() / heads;
  return {head, part, static_cast<int>(part * items / parts), static_cast<int>((part + 1) * items / parts)};
}

}  // namespace ocl::register_attention

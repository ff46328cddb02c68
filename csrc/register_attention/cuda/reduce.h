// Second stage of register attention: sums over partial results in an order that depends on the sizes only.
#pragma once

#include "register_attention/cuda/common.h"

namespace ocl::register_attention {

// maps[b, k, m] = mean over heads of partial[b, h, k, m]. One thread per element.
struct MeanOverHeads {
  const float* partial = nullptr;
  float* maps = nullptr;
  int64_t images = 0, heads = 0, size = 0;  // size = K * M
};

constexpr int mean_threads = 256;

inline int64_t mean_blocks(const MeanOverHeads& task) { return (task.images * task.size + mean_threads - 1) / mean_threads; }

template <class Float>
OCL_KERNEL void OCL_LAUNCH_BOUNDS(mean_threads, 1) mean_kernel(const MeanOverHeads task) {
  const int64_t index = static_cast<int64_t>(simt::block_x()) * mean_threads + simt::thread_index();
  if (index >= task.images * task.size) return;
  const int64_t image = index / task.size;
  const float* address = task.partial + image * task.heads * task.size + index % task.size;
  Float sum = 0;
  for (int64_t head = 0; head < task.heads; ++head) sum += address[head * task.size];
  task.maps[index] = sum / static_cast<Float>(task.heads);
}

// out[slice, row, column] = scale * sum over parts of partial[slice, part, row, column], slice = image * heads + head. A block owns
// 128 neighbouring elements of a slice, 4 per lane; each of its 8 warps adds up a run of the parts, then the 8 sums are added in
// order.
struct SumOverParts {
  const float* partial = nullptr;
  View out;
  bool out_is_float = false;  // else of the kernel's type
  int64_t slices = 0, heads = 0;
  int parts = 0, rows = 0, width = 0;
  float scale = 1.0f;
  int64_t first_block = 0, blocks = 0;
};

constexpr int sum_shares = 8, sum_threads = 32 * sum_shares, sum_elements = 4 * 32;
constexpr int64_t sum_shared_bytes = sum_shares * sum_elements * sizeof(float);
constexpr int max_sums = 5;

struct Sums {
  SumOverParts task[max_sums];
  int count = 0;

  int64_t blocks() const { return count == 0 ? 0 : task[count - 1].first_block + task[count - 1].blocks; }

  void add(SumOverParts sum) {
    sum.first_block = blocks();
    sum.blocks = sum.slices * ((static_cast<int64_t>(sum.rows) * sum.width + sum_elements - 1) / sum_elements);
    if (sum.blocks > 0) task[count++] = sum;
  }
};

template <class T>
OCL_DEVICE void store_sum(const SumOverParts& task, int64_t slice, int element, float value) {
  const View& view = task.out;
  const int64_t start = slice / task.heads * view.batch + slice % task.heads * view.head;
  static_cast<T*>(view.data)[start + element / task.width * view.row + element % task.width] = simt::from_float<T>(value);
}

template <class T>
OCL_KERNEL void OCL_LAUNCH_BOUNDS(sum_threads, 1) sum_kernel(const Sums sums) {
  OCL_DYNAMIC_SHARED(shared);
  float* const share_sums = reinterpret_cast<float*>(shared);  // [shares][elements]
  int which = 0;
  while (which + 1 < sums.count && simt::block_x() >= sums.task[which + 1].first_block) ++which;
  const SumOverParts& task = sums.task[which];
  const int size = task.rows * task.width, blocks_per_slice = (size + sum_elements - 1) / sum_elements;
  const int block = static_cast<int>(simt::block_x() - task.first_block), slice = block / blocks_per_slice;
  const int first = block % blocks_per_slice * sum_elements, lane = lane_index(), share = warp_index();

  const int last_part = (share + 1) * task.parts / sum_shares;
  const float* const partial = task.partial + static_cast<int64_t>(slice) * task.parts * size;
  float sum[4] = {};
  for (int part = share * task.parts / sum_shares; part < last_part; ++part) {
    const float* const row = partial + static_cast<int64_t>(part) * size;
    OCL_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (first + 32 * i + lane < size) sum[i] += row[first + 32 * i + lane];
    }
  }
  OCL_UNROLL
  for (int i = 0; i < 4; ++i) share_sums[share * sum_elements + 32 * i + lane] = sum[i];
  simt::sync_threads();

  const int element = simt::thread_index();
  if (element >= sum_elements || first + element >= size) return;
  float total = share_sums[element];
  for (int other = 1; other < sum_shares; ++other) total += share_sums[other * sum_elements + element];
  if (task.out_is_float) {
    store_sum<float>(task, slice, first + element, total * task.scale);
  } else {
    store_sum<T>(task, slice, first + element, total * task.scale);
  }
}

}  // namespace ocl::register_attention

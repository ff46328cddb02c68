// Second stage of slot attention: adds the partial sums of chunks in order, divides, rounds.
#pragma once

#include "slot_attention/cuda/common.h"

namespace ocl::slot_attention {

// out[b, h, k, column] = factor * sum over chunks of sums[b, chunk, h, k, column], and with `total_out`
//   total_out[b, h, k] = sum over chunks of totals[b, chunk, h, k] + eps,  out divided by it (0 where it is 0)
// One thread per element of a row; the first thread of a row writes its total.
struct Finish {
  const float *sums = nullptr, *totals = nullptr;
  float* total_out = nullptr;
  View out;
  int64_t images = 0, heads = 0, slots = 0, width = 0;
  int chunks = 0;
  float factor = 1.0f, eps = 0.0f;

  OCL_HOST_DEVICE int64_t threads_per_row() const { return width > 0 ? width : 1; }
};

constexpr int finish_threads = 256;

inline int64_t finish_blocks(const Finish& task) {
  return ceil_div(task.images * task.heads * task.slots * task.threads_per_row(), finish_threads);
}

// sum over chunks of data[chunk * stride]
OCL_DEVICE float sum_over_chunks(const float* data, int chunks, int64_t stride) {
  float sum = 0.0f;
  for (int chunk = 0; chunk < chunks; ++chunk) sum += data[chunk * stride];
  return sum;
}

template <class T>
OCL_KERNEL void OCL_LAUNCH_BOUNDS(finish_threads, 1) finish_kernel(const Finish task) {
  const int64_t index = static_cast<int64_t>(simt::block_x()) * finish_threads + simt::thread_index();
  const int64_t all = index / task.threads_per_row(), column = index % task.threads_per_row();
  const int64_t rows = task.heads * task.slots, image = all / rows, row = all % rows;
  if (image >= task.images) return;
  float factor = task.factor;
  if (task.total_out != nullptr) {
    const float total = sum_over_chunks(task.totals + image * task.chunks * rows + row, task.chunks, rows) + task.eps;
    if (column == 0) task.total_out[all] = total;
    factor = total > 0.0f ? factor / total : 0.0f;
  }
  if (column >= task.width) return;
  const float sum =
      sum_over_chunks(task.sums + (image * task.chunks * rows + row) * task.width + column, task.chunks, rows * task.width);
  T* const out = slice_of<T>(task.out, static_cast<int>(image), static_cast<int>(row / task.slots));
  out[row % task.slots * task.out.row + column] = simt::from_float<T>(sum * factor);
}

}  // namespace ocl::slot_attention

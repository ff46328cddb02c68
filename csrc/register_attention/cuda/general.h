// Register attention for float32, and in every type for widths, sizes and strides that the tensor-core kernels do not take: plain
// multiply-adds, any D, any strides, K + R up to general_max_keys.
//
// A block of 128 threads owns a tile of up to 32 queries of one image and head. All products are one routine (ocl/cuda/product.h).
// The scores of the tile stay in shared memory: softmax and its derivative are exact, one warp per query.
// Backward: softmax is computed again with its own maximum, which keeps float32 exact where scores are large; gradients of keys are
// added to partial sums in global memory that only this block touches (see backward_block.h).
// Shared memory: staged slices of a product; a number per query; scores [rows][K + R]; backward: dP [rows][K + R].
#pragma once

#include <cmath>

#include "ocl/cuda/product.h"
#include "register_attention/cuda/backward.h"
#include "register_attention/cuda/common.h"
#include "register_attention/cuda/forward.h"

namespace ocl::register_attention {

using simt::Matrix;

constexpr int general_threads = simt::product_threads;
constexpr int product_rows = 32, product_columns = 64;
using Product = simt::BlockProduct<product_rows, product_columns>;
constexpr int general_max_keys = 8192;

// Queries per tile: as many of 32 as leave the scores of a backward tile within 64 KiB, which every device has.
constexpr int general_rows(int64_t keys) {
  int rows = product_rows;
  while (rows > 1 && 2 * rows * keys > 16384) rows /= 2;
  return rows;
}

constexpr int64_t general_shared_bytes(int64_t keys, bool backward) {
  const int64_t staged = Product::shared_floats + product_rows;
  return (staged + (backward ? 2 : 1) * general_rows(keys) * keys) * static_cast<int64_t>(sizeof(float));
}

// Keys or values of one image and head: slots, then registers. Masked slots are zeros, whatever they hold.
template <class T>
struct JointMatrix {
  Matrix<const T> slots, registers;
  const RegisterAttention& in;
  int image;

  OCL_DEVICE JointMatrix(const View& slot, const View& shared, const RegisterAttention& in_, int image_, int head)
      : slots(slot, image_, head), registers(shared, 0, head), in(in_), image(image_) {}
  OCL_DEVICE float operator()(int key, int column) const {
    if (key >= in.K) return registers(key - static_cast<int>(in.K), column);
    return attended(in, image, key) ? slots(key, column) : 0.0f;
  }
};

// scores[row][key] = factor * query . key
template <class T, class Keys>
OCL_DEVICE void score_tile(float* scores, const Product& product, const Matrix<const T>& query, const Keys& keys, int first_row,
                           int rows, int total, int width, float factor) {
  for (int first = 0; first < total; first += product_columns) {
    const int columns = total - first < product_columns ? total - first : product_columns;
    product.multiply<true, true>(
        rows, columns, width, [&](int i, int k) { return query(first_row + i, k); },
        [&](int j, int k) { return keys(first + j, k); },
        [&](int i, int j, float sum) { scores[i * total + first + j] = factor * sum; });
  }
}

// result(row, column, sum over keys of weight[row][key] keys(key, column))
template <class Keys, class Result>
OCL_DEVICE void weigh_keys(const float* weight, const Product& product, const Keys& keys, int rows, int total, int width,
                           const Result& result) {
  for (int first = 0; first < width; first += product_columns) {
    const int columns = width - first < product_columns ? width - first : product_columns;
    product.multiply<true, false>(
        rows, columns, total, [&](int i, int k) { return weight[i * total + k]; }, [&](int j, int k) { return keys(k, first + j); },
        [&](int i, int j, float sum) { result(i, first + j, sum); });
  }
}

struct RowSummary {
  float logsumexp, sink;  // sink: the probability that it takes
};

// One warp turns the scores of a query into probabilities: 0 for keys that are not attended, and where no key is left.
OCL_DEVICE RowSummary softmax_row(float* score, const RegisterAttention& in, int image, float sink) {
  const int total = static_cast<int>(in.K + in.R);
  float maximum = -infinity;
  for (int key = lane_index(); key < total; key += 32) {
    if (key < in.K && !attended(in, image, key)) score[key] = -infinity;
    maximum = fmaxf(maximum, score[key]);
  }
  maximum = fmaxf(simt::warp_maximum(maximum), sink);
  if (maximum == -infinity) maximum = 0.0f;
  float sum = 0.0f;
  for (int key = lane_index(); key < total; key += 32) {
    score[key] = expf(score[key] - maximum);
    sum += score[key];
  }
  const float of_sink = expf(sink - maximum);
  sum = simt::warp_sum(sum) + of_sink;
  const float normalizer = sum > 0.0f ? 1.0f / sum : 0.0f;
  for (int key = lane_index(); key < total; key += 32) score[key] *= normalizer;
  return {sum > 0.0f ? maximum + logf(sum) : -infinity, of_sink * normalizer};
}

OCL_DEVICE float sink_of(const RegisterAttention& in, int head) {
  return in.sink_logits != nullptr ? in.sink_logits[head] : -infinity;
}

template <class T>
OCL_KERNEL void OCL_LAUNCH_BOUNDS(general_threads, 4)
    general_forward_kernel(const RegisterAttentionForward work, const ForwardShape shape) {
  OCL_DYNAMIC_SHARED(shared);
  const RegisterAttention& in = work.in;
  float* const staged = reinterpret_cast<float*>(shared);
  const Product product(staged);
  float* const scores = staged + Product::shared_floats + product_rows;

  const int heads = static_cast<int>(in.H), total = static_cast<int>(in.K + in.R), width = static_cast<int>(in.D);
  const int head = simt::block_x() % heads, item = simt::block_x() / heads;
  const int image = item / shape.tiles_per_image, first_row = item % shape.tiles_per_image * shape.rows;
  const int rows = in.M - first_row < shape.rows ? static_cast<int>(in.M) - first_row : shape.rows;
  const int64_t slice = static_cast<int64_t>(image) * heads + head;

  const JointMatrix<T> keys(in.key, in.register_key, in, image, head), values(in.value, in.register_value, in, image, head);
  score_tile<T>(scores, product, Matrix<const T>(in.query, image, head), keys, first_row, rows, total, width, in.scale);
  simt::sync_threads();
  for (int row = warp_index(); row < rows; row += general_threads / 32) {
    const RowSummary summary = softmax_row(scores + row * total, in, image, sink_of(in, head));
    if (work.logsumexp != nullptr && lane_index() == 0) work.logsumexp[slice * in.M + first_row + row] = summary.logsumexp;
  }
  simt::sync_threads();
  if (shape.maps != nullptr) {
    for (int i = simt::thread_index(); i < in.K * rows; i += general_threads) {
      shape.maps[(slice * in.K + i / rows) * in.M + first_row + i % rows] = scores[i % rows * total + i / rows];
    }
  }
  const Matrix<T> output(work.output, image, head);
  weigh_keys(scores, product, values, rows, total, width,
             [&](int row, int column, float sum) { output.at(first_row + row, column) = simt::from_float<T>(sum); });
}

// Where a block adds up the gradients of keys: those of slots start anew with each chunk, those of registers with the block.
struct KeyGradients {
  float* slots;      // [K, D] or null
  float* registers;  // [R, D] or null
  bool new_slots, new_registers;
};

// gradients[key][column] += sum over rows of weight[row][key] right(row, column)
template <class Right>
OCL_DEVICE void add_key_gradients(const KeyGradients& gradients, const float* weight, const Product& product, const Right& right,
                                  int rows, int slots, int total, int width) {
  const int first_wanted = gradients.slots != nullptr ? 0 : slots, last_wanted = gradients.registers != nullptr ? total : slots;
  for (int first = first_wanted; first < last_wanted; first += product_rows) {
    const int count = last_wanted - first < product_rows ? last_wanted - first : product_rows;
    for (int column = 0; column < width; column += product_columns) {
      const int columns = width - column < product_columns ? width - column : product_columns;
      product.multiply<false, false>(
          count, columns, rows, [&](int i, int k) { return weight[k * total + first + i]; },
          [&](int j, int k) { return right(k, column + j); },
          [&](int i, int j, float sum) {
            const int key = first + i;
            const bool fresh = key < slots ? gradients.new_slots : gradients.new_registers;
            float* row = key < slots ? gradients.slots + static_cast<int64_t>(key) * width
                                     : gradients.registers + static_cast<int64_t>(key - slots) * width;
            row[column + j] = fresh ? sum : row[column + j] + sum;
          });
    }
  }
}

template <class T>
OCL_KERNEL void OCL_LAUNCH_BOUNDS(general_threads, 4)
    general_backward_kernel(const RegisterAttentionBackward work, const BackwardShape shape) {
  OCL_DYNAMIC_SHARED(shared);
  const RegisterAttention& in = work.in;
  float* const staged = reinterpret_cast<float*>(shared);
  const Product product(staged);
  float* const sink_products = staged + Product::shared_floats;  // p_sink delta of each query
  const int heads = static_cast<int>(in.H), slots = static_cast<int>(in.K), total = slots + static_cast<int>(in.R);
  const int width = static_cast<int>(in.D);
  float* const scores = sink_products + product_rows;
  float* const grads = scores + shape.rows * total;

  const Run run = run_of_block(heads, shape.parts, in.B * shape.chunks);
  const Item end = first_of_chunk(run.last, shape);
  const int64_t part = static_cast<int64_t>(run.head) * shape.parts + run.part;
  float grad_sink = 0.0f;  // of thread 0
  bool first_tile = true;
  for (Item item = first_of_chunk(run.first, shape); item.image != end.image || item.tile != end.tile;
       item = item.next(shape.tiles_per_image)) {
    const int first_row = item.tile * shape.rows;
    const int rows = in.M - first_row < shape.rows ? static_cast<int>(in.M) - first_row : shape.rows;
    const Matrix<const T> query(in.query, item.image, run.head), grad_output(work.grad_output, item.image, run.head);
    const JointMatrix<T> keys(in.key, in.register_key, in, item.image, run.head);
    const JointMatrix<T> values(in.value, in.register_value, in, item.image, run.head);
    score_tile<T>(scores, product, query, keys, first_row, rows, total, width, in.scale);
    score_tile<T>(grads, product, grad_output, values, first_row, rows, total, width, 1.0f);
    simt::sync_threads();
    for (int row = warp_index(); row < rows; row += general_threads / 32) {
      float* const probability = scores + row * total;
      float* const grad = grads + row * total;
      const RowSummary summary = softmax_row(probability, in, item.image, sink_of(in, run.head));
      float delta = 0.0f;
      for (int key = lane_index(); key < total; key += 32) {
        if (work.grad_maps != nullptr && key < slots) {
          grad[key] += work.grad_maps[(item.image * in.K + key) * in.M + first_row + row] / static_cast<float>(heads);
        }
        delta += probability[key] * grad[key];
      }
      delta = simt::warp_sum(delta);
      for (int key = lane_index(); key < total; key += 32) grad[key] = probability[key] * (grad[key] - delta);
      if (lane_index() == 0) sink_products[row] = summary.sink * delta;
    }
    simt::sync_threads();
    if (shape.sink != nullptr && simt::thread_index() == 0) {
      for (int row = 0; row < rows; ++row) grad_sink -= sink_products[row];
    }
    if (work.grad_query.data != nullptr) {
      const Matrix<T> grad_query(work.grad_query, item.image, run.head);
      weigh_keys(grads, product, keys, rows, total, width, [&](int row, int column, float sum) {
        grad_query.at(first_row + row, column) = simt::from_float<T>(sum * in.scale);
      });
    }
    const int64_t chunk = (static_cast<int64_t>(item.image) * heads + run.head) * shape.chunks + item.tile / shape.tiles_per_chunk;
    const auto partial = [&](float* slot_sums, float* register_sums) {
      return KeyGradients{slot_sums != nullptr ? slot_sums + chunk * slots * width : nullptr,
                          register_sums != nullptr ? register_sums + part * in.R * width : nullptr,
                          item.tile % shape.tiles_per_chunk == 0, first_tile};
    };
    add_key_gradients(
        partial(shape.slot_key, shape.register_key), grads, product,
        [&](int row, int column) { return query(first_row + row, column); }, rows, slots, total, width);
    add_key_gradients(
        partial(shape.slot_value, shape.register_value), scores, product,
        [&](int row, int column) { return grad_output(first_row + row, column); }, rows, slots, total, width);
    first_tile = false;  // products read the scores before their last barrier: the next tile may overwrite them
  }
  if (shape.sink != nullptr && simt::thread_index() == 0) shape.sink[part] = grad_sink;
}

}  // namespace ocl::register_attention

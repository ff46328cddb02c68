// Backward of register attention with the sums in fp32, whatever the dtype. For a block of 32 rows:
//   P = exp(scale query key^T - logsumexp),  dP = dO value^T + dmaps / H,  dS = P (dP - rowsum(P dP))
//   dquery = scale dS key,  dkey += dS^T scale query,  dvalue += P^T dO,  dsink -= p_sink rowsum(P dP)
// A task owns (image, head, chunk of rows) and leaves its sums of dkey and dvalue, which are then added up chunk by chunk (slots)
// and image by image (registers), in order. Images go in waves, so that the memory for these sums does not grow with the batch.
// Every product that leads only to gradients nobody wants is left out.
#pragma once

#include "register_attention/cpu_blocks.h"

namespace ocl {
namespace {

constexpr int64_t kBackwardChunk = 512;
constexpr int64_t kWaveTasks = 256;

template <class Arithmetic>
class BackwardBlocks {
 public:
  using Element = typename Arithmetic::Element;
  using Panels = typename Arithmetic::Panels;

  BackwardBlocks(const RegisterAttentionBackward& work, const Panels& keys, const Panels& values, const Panels& key_rows)
      : work_(work),
        in_(work.in),
        wanted_(work),
        layout_(Arithmetic::layout(work.in)),
        sums_(work.in, wanted_, layout_.width),
        keys_(keys),
        values_(values),
        key_rows_(key_rows),
        arithmetic_(work.in),
        key_gradients_(arithmetic_.key_gradients(wanted_)),
        exclusion_(work.in, layout_),
        query_(kBlockRows * Arithmetic::row_size(work.in)),
        grad_output_(kBlockRows * Arithmetic::row_size(work.in)),
        grad_query_(kBlockRows * layout_.width),
        attention_(kBlockRows * layout_.columns),
        grad_scores_(kBlockRows * layout_.columns) {
    std::fill_n(query_.data(), kBlockRows * Arithmetic::row_size(work.in), Element{});
    std::fill_n(grad_output_.data(), kBlockRows * Arithmetic::row_size(work.in), Element{});
    std::fill_n(attention_.data(), kBlockRows * layout_.columns, 0.0f);
    std::fill_n(grad_scores_.data(), kBlockRows * layout_.columns, 0.0f);
  }

  void run(int64_t image, int64_t head, int64_t first_row, int64_t last_row, float* sums) {
    image_ = image;
    head_ = head;
    exclusion_.set_image(image);
    if (first_row >= last_row) return void(std::fill_n(sums, sums_.size, 0.0f));
    if (wanted_.sink) sums[sums_.sink] = 0.0f;
    key_gradients_.begin(sums);
    for (int64_t row = first_row; row < last_row; row += kBlockRows) block(row, std::min(kBlockRows, last_row - row), sums);
    key_gradients_.end();
  }

 private:
  void block(int64_t first, int64_t rows, float* sums) {
    const Rows<Element> query =
        arithmetic_.query(address(in_.query, in_.dtype, image_, head_, first), in_.query.row, rows, query_.data());
    const Rows<Element> grad_output = arithmetic_.grad_output(
        address(work_.grad_output, in_.dtype, image_, head_, first), work_.grad_output.row, rows, grad_output_.data());
    recompute_attention(query, first, rows);
    if (wanted_.scores()) {
      arithmetic_.scores(grad_output, rows, values_, image_, head_, grad_scores_.data());
      if (work_.grad_maps != nullptr) add_grad_maps(first, rows);
      softmax_backward(first, rows, sums);
    }
    if (wanted_.query) write_grad_query(first, rows);
    key_gradients_.add({query, grad_output, attention_.data(), grad_scores_.data(), rows});
  }

  void recompute_attention(const Rows<Element>& query, int64_t first, int64_t rows) {
    arithmetic_.scores(query, rows, keys_, image_, head_, attention_.data());
    exclusion_.apply(attention_.data(), rows);
    const Floats factor = broadcast(Arithmetic::score_factor(in_));
    float* scores = attention_.data();
    for (int64_t row = 0; row < rows; ++row, scores += layout_.columns) {
      prefetch(first + row);
      const Floats shift = broadcast(finite_logsumexp(first + row) * kLog2E);
#pragma GCC unroll 3
      for (int64_t column = 0; column < layout_.columns; column += kLanes) {
        store(scores + column, exp2<Arithmetic::kExp2>(load(scores + column) * factor - shift));
      }
    }
  }

  void prefetch(int64_t row) const {
    const int64_t next = std::min(row + kBlockRows, in_.M - 1);
    prefetch_row<false>(in_.dtype, address(in_.query, in_.dtype, image_, head_, next), in_.D);
    prefetch_row<false>(in_.dtype, address(work_.grad_output, in_.dtype, image_, head_, next), in_.D);
    if (wanted_.query) prefetch_row<true>(in_.dtype, address(work_.grad_query, in_.dtype, image_, head_, row), in_.D);
  }

  // A row without a key has -infinity; anything finite makes its weights 2^-infinity = 0.
  float finite_logsumexp(int64_t row) const {
    return std::max(work_.logsumexp[(image_ * in_.H + head_) * in_.M + row], -FLT_MAX / 2);
  }

  void add_grad_maps(int64_t first, int64_t rows) {
    const float share = 1.0f / static_cast<float>(in_.H);
    for (int64_t k = 0; k < in_.K; ++k) {
      const float* grad_map = work_.grad_maps + (image_ * in_.K + k) * in_.M + first;
      for (int64_t row = 0; row < rows; ++row) grad_scores_.data()[row * layout_.columns + k] += grad_map[row] * share;
    }
  }

  void softmax_backward(int64_t first, int64_t rows, float* sums) {
    alignas(64) float means[kBlockRows];
    for (int64_t row = 0; row < rows; row += kLanes) store(means + row, weighted_sums(row));
    const float* attention = attention_.data();
    float* grads = grad_scores_.data();
    const auto weights = arithmetic_.weights();
    const int64_t columns = layout_.columns;
    for (int64_t row = 0; row < rows; ++row) {
      const Floats mean = broadcast(means[row]);
#pragma GCC unroll 3
      for (int64_t i = row * columns; i < (row + 1) * columns; i += kLanes) {
        const Floats grad = load(attention + i) * (load(grads + i) - mean);
        store(grads + i, grad);
        weights.store(i, grad);
      }
      if (wanted_.sink) sums[sums_.sink] -= means[row] * exp2((in_.sink_logits[head_] - finite_logsumexp(first + row)) * kLog2E);
    }
  }

  // Sum over keys of attention * grad_scores, for kLanes rows.
  OCL_INLINE Floats weighted_sums(int64_t first_row) const {
    Floats products[kLanes];
    for (int64_t row = 0; row < kLanes; ++row) {
      const int64_t start = (first_row + row) * layout_.columns;
      products[row] = Floats{};
#pragma GCC unroll 3
      for (int64_t i = start; i < start + layout_.columns; i += kLanes) {
        products[row] = load(attention_.data() + i) * load(grad_scores_.data() + i) + products[row];
      }
    }
    return reduce_rows(products, [](Floats a, Floats b) { return a + b; });
  }

  void write_grad_query(int64_t first, int64_t rows) {
    arithmetic_.weighted(grad_scores_.data(), rows, key_rows_, image_, head_, grad_query_.data());
    store_rows(in_.dtype, grad_query_.data(), layout_.width, rows, in_.D, [&](int64_t) { return in_.scale; },
               address(work_.grad_query, in_.dtype, image_, head_, first), work_.grad_query.row);
  }

  const RegisterAttentionBackward& work_;
  const RegisterAttention& in_;
  Wanted wanted_;
  Layout layout_;
  SumLayout sums_;
  const Panels& keys_;
  const Panels& values_;
  const Panels& key_rows_;
  Arithmetic arithmetic_;
  typename Arithmetic::KeyGradients key_gradients_;
  Exclusion exclusion_;
  Scratch<Element> query_, grad_output_;
  Scratch<float> grad_query_, attention_, grad_scores_;
  int64_t image_ = 0, head_ = 0;
};

// The sums of the tasks of one wave of images, and what becomes of them.
class GradientSums {
 public:
  // Sums of dS query times `key_factor` are gradients of keys.
  GradientSums(const RegisterAttentionBackward& work, int64_t width, float key_factor, int64_t chunks, int64_t wave_images)
      : work_(work),
        in_(work.in),
        wanted_(work),
        width_(width),
        key_factor_(key_factor),
        offsets_(work.in, wanted_, width),
        chunks_(chunks),
        tasks_(wave_images * in_.H * chunks * offsets_.size),
        totals_(in_.H * offsets_.size) {
    std::fill_n(totals_.data(), in_.H * offsets_.size, 0.0f);
  }

  // Sums of task (image of the wave, head, chunk).
  float* task(int64_t image, int64_t head, int64_t chunk) const {
    return tasks_.data() + ((image * in_.H + head) * chunks_ + chunk) * offsets_.size;
  }

  // Adds up the chunks of (image, head), which is `wave_image` of its wave, and writes the gradients of its slots.
  void write_slots(int64_t image, int64_t wave_image, int64_t head) const {
    float* first = task(wave_image, head, 0);
    for (int64_t chunk = 1; chunk < chunks_; ++chunk) add(task(wave_image, head, chunk), offsets_.register_key, first);
    if (wanted_.key) write_slots(first + offsets_.key, key_factor_, work_.grad_key, image, head);
    if (wanted_.value) write_slots(first + offsets_.value, 1.0f, work_.grad_value, image, head);
  }

  // Adds row `key` of the registers of a head, over the images of a wave in order.
  void add_register(int64_t head, int64_t key, int64_t wave_images) const {
    const int64_t row = key * width_;
    for (int64_t task_of_head = 0; task_of_head < wave_images * chunks_; ++task_of_head) {
      const float* sums = task(task_of_head / chunks_, head, task_of_head % chunks_) + row;
      float* total = totals_.data() + head * offsets_.size + row;
      if (wanted_.register_key) add(sums + offsets_.register_key, width_, total + offsets_.register_key);
      if (wanted_.register_value) add(sums + offsets_.register_value, width_, total + offsets_.register_value);
    }
  }

  void add_sinks(int64_t wave_images) const {
    for (int64_t i = 0; i < wave_images * in_.H * chunks_; ++i) {
      totals_.data()[i / chunks_ % in_.H * offsets_.size + offsets_.sink] += tasks_.data()[i * offsets_.size + offsets_.sink];
    }
  }

  // Writes what all the waves added up.
  void write_registers(int64_t head) const {
    const float* total = totals_.data() + head * offsets_.size;
    if (wanted_.register_key) write(total + offsets_.register_key, in_.R, key_factor_, work_.grad_register_key, 0, head);
    if (wanted_.register_value) write(total + offsets_.register_value, in_.R, 1.0f, work_.grad_register_value, 0, head);
    if (wanted_.sink) work_.grad_sink_logits[head] = total[offsets_.sink];
  }

 private:
  static void add(const float* from, int64_t size, float* to) {
    for (int64_t i = 0; i < size; i += kLanes) store(to + i, load(to + i) + load(from + i));
  }

  // A masked slot has no gradient, even beside rows that are not finite.
  void write_slots(float* rows, float factor, const View& out, int64_t image, int64_t head) const {
    for (int64_t k = 0; k < in_.K && in_.slot_mask != nullptr; ++k) {
      if (in_.slot_mask[image * in_.K + k] == 0) std::fill_n(rows + k * width_, width_, 0.0f);
    }
    write(rows, in_.K, factor, out, image, head);
  }

  void write(const float* rows, int64_t num_rows, float factor, const View& out, int64_t image, int64_t head) const {
    store_rows(in_.dtype, rows, width_, num_rows, in_.D, [&](int64_t) { return factor; },
               address(out, in_.dtype, image, head, 0), out.row);
  }

  const RegisterAttentionBackward& work_;
  const RegisterAttention& in_;
  Wanted wanted_;
  int64_t width_;
  float key_factor_;
  SumLayout offsets_;
  int64_t chunks_;
  Scratch<float> tasks_, totals_;
};

template <class Arithmetic>
void backward(const RegisterAttentionBackward& work, const ParallelFor& parallel) {
  const RegisterAttention& in = work.in;
  const Wanted wanted(work);
  if (!wanted.any()) return;
  using Panels = typename Arithmetic::Panels;
  Panels keys(in, true), values(in, true, wanted.scores()), key_rows(in, false, wanted.query);
  parallel((in.B + 1) * in.H, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      keys.pack(in.key, in.register_key, i / in.H, i % in.H);
      if (wanted.scores()) values.pack(in.value, in.register_value, i / in.H, i % in.H);
      if (wanted.query) key_rows.pack(in.key, in.register_key, i / in.H, i % in.H);
    }
  });
  const int64_t chunks = std::max<int64_t>((in.M + kBackwardChunk - 1) / kBackwardChunk, 1);
  const int64_t tasks_per_image = std::max<int64_t>(in.H * chunks, 1);
  const int64_t wave = std::min((kWaveTasks + tasks_per_image - 1) / tasks_per_image, in.B);
  const GradientSums sums(work, Arithmetic::layout(in).width, Arithmetic::key_factor(in), chunks, wave);
  for (int64_t start = 0; start < in.B; start += wave) {
    const int64_t images = std::min(wave, in.B - start);
    parallel(images * in.H * chunks, [&](int64_t first, int64_t last) {
      BackwardBlocks<Arithmetic> blocks(work, keys, values, key_rows);
      for (int64_t i = first; i < last; ++i) {
        const int64_t image = i / chunks / in.H, head = i / chunks % in.H, row = i % chunks * kBackwardChunk;
        blocks.run(start + image, head, row, std::min(row + kBackwardChunk, in.M), sums.task(image, head, i % chunks));
      }
    });
    parallel(images * in.H + in.H * in.R, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t key = i - images * in.H;
        key < 0 ? sums.write_slots(start + i / in.H, i / in.H, i % in.H) : sums.add_register(key / in.R, key % in.R, images);
      }
    });
    if (wanted.sink) sums.add_sinks(images);
  }
  for (int64_t head = 0; head < in.H; ++head) sums.write_registers(head);
}

}  // namespace
}  // namespace ocl

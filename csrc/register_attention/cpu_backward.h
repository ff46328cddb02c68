// Backward of register attention with the sums in fp32, whatever the dtype. For a block of 32 rows:
//   P = exp(scale query key^T - logsumexp),  dP = dO value^T + dmaps / H,  dS = P (dP - rowsum(P dP))
//   dquery = scale dS key,  dkey += dS^T scale query,  dvalue += P^T dO,  dsink -= p_sink rowsum(P dP)
// A task owns (image, head, chunk of rows) and leaves its sums of dkey and dvalue, which are then added up chunk by chunk (slots) and
// image by image (registers), in order. Images go in waves, so that the memory for these sums does not grow with the batch.
// Every product that leads only to gradients nobody wants is left out.
#pragma once

#include "register_attention/cpu_forward.h"

namespace ocl {
namespace {

constexpr int64_t kBackwardChunk = 512;
constexpr int64_t kWaveTasks = 256;

// Which products the wanted gradients need.
struct Wanted {
  explicit Wanted(const RegisterAttentionBackward& work)
      : query(work.grad_query.data != nullptr),
        key(work.grad_key.data != nullptr),
        value(work.grad_value.data != nullptr),
        register_key(work.grad_register_key.data != nullptr),
        register_value(work.grad_register_value.data != nullptr),
        sink(work.grad_sink_logits != nullptr) {}
  bool scores() const { return query || key || register_key || sink; }
  bool any() const { return scores() || value || register_value; }
  bool query, key, value, register_key, register_value, sink;
};

// Where the sums of one task lie: rows of dkey, dvalue of the slots, then of the registers, then dsink.
struct SumLayout {
  SumLayout(const RegisterAttention& in, const Wanted& wanted) {
    const Layout layout(in);
    const int64_t slots = layout.slots * layout.width, registers = layout.registers * layout.width;
    value = wanted.key ? slots : 0;
    register_key = value + (wanted.value ? slots : 0);
    register_value = register_key + (wanted.register_key ? registers : 0);
    sink = register_value + (wanted.register_value ? registers : 0);
    size = sink + (wanted.sink ? kLanes : 0);
  }
  int64_t key = 0, value, register_key, register_value, sink, size;
};

class BackwardBlocks {
 public:
  BackwardBlocks(const RegisterAttentionBackward& work, const Panels& keys, const Panels& values, const Panels& key_rows)
      : work_(work),
        in_(work.in),
        wanted_(work),
        layout_(work.in),
        sums_(work.in, wanted_),
        keys_(keys),
        values_(values),
        key_rows_(key_rows),
        exclusion_(work.in),
        query_(kBlockRows * layout_.width),
        grad_output_(kBlockRows * layout_.width),
        grad_query_(kBlockRows * layout_.width),
        attention_(kBlockRows * layout_.columns),
        grad_scores_(kBlockRows * layout_.columns) {
    std::fill_n(query_.data(), kBlockRows * layout_.width, 0.0f);
    std::fill_n(grad_output_.data(), kBlockRows * layout_.width, 0.0f);
  }

  void run(int64_t image, int64_t head, int64_t first_row, int64_t last_row, float* sums) {
    image_ = image;
    head_ = head;
    exclusion_.set_image(image);
    if (first_row >= last_row) std::fill_n(sums, sums_.size, 0.0f);
    if (wanted_.sink) sums[sums_.sink] = 0.0f;
    for (int64_t row = first_row; row < last_row; row += kBlockRows) {
      block(row, std::min(kBlockRows, last_row - row), sums, row > first_row);
    }
  }

 private:
  void block(int64_t first, int64_t rows, float* sums, bool add) {
    load_rows(in_.dtype, address(in_.query, in_.dtype, image_, head_, first), in_.query.row, rows, in_.D, in_.scale * kLog2E,
              query_.data(), layout_.width);
    load_rows(in_.dtype, address(work_.grad_output, in_.dtype, image_, head_, first), work_.grad_output.row, rows, in_.D, 1.0f,
              grad_output_.data(), layout_.width);
    recompute_attention(first, rows);
    if (wanted_.scores()) {
      values_.multiply_scores(grad_output_.data(), round_up(rows, kTileRows), image_, head_, grad_scores_.data());
      if (work_.grad_maps != nullptr) add_grad_maps(first, rows);
      softmax_backward(first, rows, sums);
    }
    if (wanted_.query) write_grad_query(first, rows);
    const float* dS = grad_scores_.data();
    const float* P = attention_.data();
    const int64_t slots = layout_.slots;
    if (wanted_.key) add_outer(dS, query_.data(), rows, in_.K, sums + sums_.key, add);
    if (wanted_.value) add_outer(P, grad_output_.data(), rows, in_.K, sums + sums_.value, add);
    if (wanted_.register_key) add_outer(dS + slots, query_.data(), rows, in_.R, sums + sums_.register_key, add);
    if (wanted_.register_value) add_outer(P + slots, grad_output_.data(), rows, in_.R, sums + sums_.register_value, add);
  }

  void recompute_attention(int64_t first, int64_t rows) {
    keys_.multiply_scores(query_.data(), round_up(rows, kTileRows), image_, head_, attention_.data());
    exclusion_.apply(attention_.data(), rows);
    float* scores = attention_.data();
    for (int64_t row = 0; row < rows; ++row, scores += layout_.columns) {
      prefetch(first + row);
      const Floats shift = broadcast(finite_logsumexp(first + row) * kLog2E);
      for (int64_t column = 0; column < layout_.columns; column += kLanes) {
        store(scores + column, exp2(load(scores + column) - shift));
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
    const float* attention = attention_.data();
    float* grads = grad_scores_.data();
    for (int64_t row = 0; row < rows; ++row, attention += layout_.columns, grads += layout_.columns) {
      Floats products = {};
      for (int64_t column = 0; column < layout_.columns; column += kLanes) {
        products = load(attention + column) * load(grads + column) + products;
      }
      const float mean = sum(products);
      const Floats means = broadcast(mean);
      for (int64_t column = 0; column < layout_.columns; column += kLanes) {
        store(grads + column, load(attention + column) * (load(grads + column) - means));
      }
      if (wanted_.sink) sums[sums_.sink] -= mean * exp2((in_.sink_logits[head_] - finite_logsumexp(first + row)) * kLog2E);
    }
  }

  void write_grad_query(int64_t first, int64_t rows) {
    key_rows_.multiply_rows(grad_scores_.data(), round_up(rows, kTileRows), image_, head_, grad_query_.data());
    store_rows(in_.dtype, grad_query_.data(), layout_.width, rows, in_.D, [&](int64_t) { return in_.scale; },
               address(work_.grad_query, in_.dtype, image_, head_, first), work_.grad_query.row);
  }

  // out[key] (+)= sum over rows of scores[row][key] * vectors[row].
  void add_outer(const float* scores, const float* vectors, int64_t rows, int64_t keys, float* out, bool add) const {
    multiply({{scores, 1, layout_.columns}, {vectors, layout_.width, kLanes}, rows}, round_up(keys, kTileRows),
             layout_.width / kLanes, {out, layout_.width, add});
  }

  const RegisterAttentionBackward& work_;
  const RegisterAttention& in_;
  Wanted wanted_;
  Layout layout_;
  SumLayout sums_;
  const Panels& keys_;
  const Panels& values_;
  const Panels& key_rows_;
  Exclusion exclusion_;
  Scratch<float> query_, grad_output_, grad_query_, attention_, grad_scores_;
  int64_t image_ = 0, head_ = 0;
};

// The sums of the tasks of one wave of images, and what becomes of them.
class GradientSums {
 public:
  GradientSums(const RegisterAttentionBackward& work, int64_t chunks, int64_t wave_images)
      : work_(work),
        in_(work.in),
        wanted_(work),
        layout_(work.in),
        offsets_(work.in, wanted_),
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
    if (wanted_.key) write_slots(first + offsets_.key, kLn2, work_.grad_key, image, head);
    if (wanted_.value) write_slots(first + offsets_.value, 1.0f, work_.grad_value, image, head);
  }

  // Adds row `key` of the registers of a head, over the images of a wave in order.
  void add_register(int64_t head, int64_t key, int64_t wave_images) const {
    const int64_t row = key * layout_.width;
    for (int64_t task_of_head = 0; task_of_head < wave_images * chunks_; ++task_of_head) {
      const float* sums = task(task_of_head / chunks_, head, task_of_head % chunks_) + row;
      float* total = totals_.data() + head * offsets_.size + row;
      if (wanted_.register_key) add(sums + offsets_.register_key, layout_.width, total + offsets_.register_key);
      if (wanted_.register_value) add(sums + offsets_.register_value, layout_.width, total + offsets_.register_value);
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
    if (wanted_.register_key) write(total + offsets_.register_key, in_.R, kLn2, work_.grad_register_key, 0, head);
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
      if (in_.slot_mask[image * in_.K + k] == 0) std::fill_n(rows + k * layout_.width, layout_.width, 0.0f);
    }
    write(rows, in_.K, factor, out, image, head);
  }

  void write(const float* rows, int64_t num_rows, float factor, const View& out, int64_t image, int64_t head) const {
    store_rows(in_.dtype, rows, layout_.width, num_rows, in_.D, [&](int64_t) { return factor; },
               address(out, in_.dtype, image, head, 0), out.row);
  }

  const RegisterAttentionBackward& work_;
  const RegisterAttention& in_;
  Wanted wanted_;
  Layout layout_;
  SumLayout offsets_;
  int64_t chunks_;
  Scratch<float> tasks_, totals_;
};

inline void backward(const RegisterAttentionBackward& work, const ParallelFor& parallel) {
  const RegisterAttention& in = work.in;
  const Wanted wanted(work);
  if (!wanted.any()) return;
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
  const GradientSums sums(work, chunks, wave);
  for (int64_t start = 0; start < in.B; start += wave) {
    const int64_t images = std::min(wave, in.B - start);
    parallel(images * in.H * chunks, [&](int64_t first, int64_t last) {
      BackwardBlocks blocks(work, keys, values, key_rows);
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

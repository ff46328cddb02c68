// What the CPU kernels of register attention share, whatever computes their products: vectors (cpu_vectors.h) or tiles
// (cpu_tiles.h). They walk over blocks of rows. Scores are rows of `columns` floats: the slots, then padding, then the registers.
#pragma once

#include "ocl/cpu/convert.h"
#include "ocl/cpu/memory.h"
#include "register_attention/kernel.h"

namespace ocl {
namespace {

constexpr int64_t kBlockRows = 32;

struct Layout {
  int64_t slots, registers;  // floats in a row of scores
  int64_t width;             // floats in a row of queries, keys or values
  int64_t columns = slots + registers;
};

// Queries, or gradients of outputs, as the products take them: row i at data + i * row.
template <class Element>
struct Rows {
  const Element* data = nullptr;
  int64_t row = 0;
};

// A block of rows, and what the softmax made of it.
template <class Element>
struct Block {
  Rows<Element> query, grad_output;
  const float* attention;
  const float* grad_scores;
  int64_t rows;
};

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
  SumLayout(const RegisterAttention& in, const Wanted& wanted, int64_t width) {
    const int64_t slots = round_up(in.K, kLanes) * width, registers = round_up(in.R, kLanes) * width;
    value = wanted.key ? slots : 0;
    register_key = value + (wanted.value ? slots : 0);
    register_value = register_key + (wanted.register_key ? registers : 0);
    sink = register_value + (wanted.register_value ? registers : 0);
    size = sink + (wanted.sink ? kLanes : 0);
  }
  int64_t key = 0, value, register_key, register_value, sink, size;
};

// Which columns of the scores stand for no key: padding, and slots masked in this image.
class Exclusion {
 public:
  Exclusion(const RegisterAttention& in, const Layout& layout)
      : in_(in), layout_(layout), keep_(layout.columns), partial_(layout.columns / kLanes) {}

  void set_image(int64_t image) {
    std::fill_n(keep_.data(), layout_.columns, 0);
    for (int64_t k = 0; k < in_.K; ++k) keep_.data()[k] = in_.slot_mask == nullptr || in_.slot_mask[image * in_.K + k] ? -1 : 0;
    std::fill_n(keep_.data() + layout_.slots, in_.R, -1);
    num_partial_ = 0;
    for (int64_t column = 0; column < layout_.columns; column += kLanes) {
      const int32_t* keep = keep_.data() + column;
      if (std::any_of(keep, keep + kLanes, [](int32_t kept) { return kept == 0; })) partial_.data()[num_partial_++] = column;
    }
  }

  // Their scores become -infinity, whose exp2 is exactly 0.
  void apply(float* scores, int64_t rows) const {
    const Floats none = broadcast(-std::numeric_limits<float>::infinity());
    for (int64_t row = 0; row < rows; ++row, scores += layout_.columns) {
      for (int64_t i = 0; i < num_partial_; ++i) {
        const int64_t column = partial_.data()[i];
        store(scores + column, select(load(keep_.data() + column), load(scores + column), none));
      }
    }
  }

 private:
  const RegisterAttention& in_;
  Layout layout_;
  Scratch<int32_t> keep_;
  Scratch<int64_t> partial_;  // vectors with such a column
  int64_t num_partial_ = 0;
};

}  // namespace
}  // namespace ocl

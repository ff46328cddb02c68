// Keys and values of register attention as panels: what the products of matmul.h read, packed once per call.
//
// A transposed panel holds key[key][d] as [vector of keys][d][lane], the natural one as [vector of d][key][lane]; keys that are
// masked, and lanes past the last key or past D, are zeros. Slots have a panel per (image, head), registers one per head that
// all images share. Scores are rows of `columns` floats: the slots, padded to whole vectors, then the registers, padded too.
#pragma once

#include "ocl/cpu/convert.h"
#include "ocl/cpu/matmul.h"
#include "ocl/cpu/memory.h"
#include "register_attention/kernel.h"

namespace ocl {
namespace {

struct Layout {
  explicit Layout(const RegisterAttention& in)
      : slots(round_up(in.K, kLanes)), registers(round_up(in.R, kLanes)), columns(slots + registers), width(round_up(in.D, kLanes)) {}
  int64_t slots, registers, columns;  // floats in a row of scores
  int64_t width;                      // floats in a row of queries, keys or values
};

// One kind of panel: of the keys or of the values, transposed or natural, for slots and registers of all heads.
class Panels {
 public:
  Panels(const RegisterAttention& in, bool transposed, bool wanted = true)
      : in_(in),
        transposed_(transposed),
        layout_(in),
        slot_size_(transposed ? layout_.slots * in.D : in.K * layout_.width),
        register_size_(transposed ? layout_.registers * in.D : in.R * layout_.width),
        data_(wanted ? (in.B * slot_size_ + register_size_) * in.H : 0) {}

  // Packs the slots of (image, head), or for image == B the registers of the head.
  void pack(const View& slots, const View& registers, int64_t image, int64_t head) {
    const bool shared = image == in_.B;
    const uint8_t* keep = shared || in_.slot_mask == nullptr ? nullptr : in_.slot_mask + image * in_.K;
    const void* from = shared ? address(registers, in_.dtype, 0, head, 0) : address(slots, in_.dtype, image, head, 0);
    pack_rows(from, shared ? registers.row : slots.row, shared ? in_.R : in_.K, keep, panel(image, head));
  }

  // C = A B for scores: `rows` x D times the transposed panels.
  void multiply_scores(const float* rows, int64_t num_rows, int64_t image, int64_t head, float* scores) const {
    const Left left{rows, layout_.width, 1};
    const int64_t vector = in_.D * kLanes;
    multiply({left, {panel(image, head), kLanes, vector}, in_.D}, num_rows, layout_.slots / kLanes, {scores, layout_.columns, false});
    multiply({left, {panel(in_.B, head), kLanes, vector}, in_.D}, num_rows, layout_.registers / kLanes,
             {scores + layout_.slots, layout_.columns, false});
  }

  // C = A B for weighted sums of keys or values: scores times the natural panels.
  void multiply_rows(const float* scores, int64_t num_rows, int64_t image, int64_t head, float* rows) const {
    const Product products[] = {
        {{scores, layout_.columns, 1}, {panel(image, head), kLanes, in_.K * kLanes}, in_.K},
        {{scores + layout_.slots, layout_.columns, 1}, {panel(in_.B, head), kLanes, in_.R * kLanes}, in_.R},
    };
    multiply(products, num_rows, layout_.width / kLanes, {rows, layout_.width, false});
  }

 private:
  float* panel(int64_t image, int64_t head) const {
    const int64_t slots = (image * in_.H + head) * slot_size_;
    return data_.data() + (image < in_.B ? slots : in_.B * in_.H * slot_size_ + head * register_size_);
  }

  void pack_rows(const void* from, int64_t stride, int64_t keys, const uint8_t* keep, float* to) const {
    const Scratch<float> group(kLanes * layout_.width);
    for (int64_t first = 0; first < keys; first += kLanes) {
      const int64_t count = std::min(kLanes, keys - first);
      const char* rows = static_cast<const char*>(from) + first * stride * element_size(in_.dtype);
      load_rows(in_.dtype, rows, stride, count, in_.D, 1.0f, group.data(), layout_.width);
      for (int64_t key = 0; key < kLanes; ++key) {
        const bool excluded = key >= count || (keep != nullptr && keep[first + key] == 0);
        if (excluded) std::fill_n(group.data() + key * layout_.width, layout_.width, 0.0f);
      }
      transposed_ ? scatter_transposed(group.data(), to + first * in_.D) : scatter_natural(group.data(), first, count, keys, to);
    }
  }

  void scatter_transposed(const float* group, float* to) const {
    for (int64_t d = 0; d < in_.D; ++d) {
      for (int64_t lane = 0; lane < kLanes; ++lane) to[d * kLanes + lane] = group[lane * layout_.width + d];
    }
  }

  void scatter_natural(const float* group, int64_t first, int64_t count, int64_t keys, float* to) const {
    for (int64_t d = 0; d < layout_.width; d += kLanes) {
      float* vectors = to + d * keys + first * kLanes;
      for (int64_t key = 0; key < count; ++key) store(vectors + key * kLanes, load(group + key * layout_.width + d));
    }
  }

  const RegisterAttention& in_;
  bool transposed_;
  Layout layout_;
  int64_t slot_size_, register_size_;
  Scratch<float> data_;
};

// Which columns of the scores stand for no key: padding, and slots masked in this image.
class Exclusion {
 public:
  Exclusion(const RegisterAttention& in) : in_(in), layout_(in), keep_(layout_.columns) {}

  void set_image(int64_t image) {
    std::fill_n(keep_.data(), layout_.columns, 0);
    for (int64_t k = 0; k < in_.K; ++k) keep_.data()[k] = in_.slot_mask == nullptr || in_.slot_mask[image * in_.K + k] ? -1 : 0;
    std::fill_n(keep_.data() + layout_.slots, in_.R, -1);
  }

  // Their scores become -infinity, whose exp2 is exactly 0.
  void apply(float* scores, int64_t rows) const {
    const Floats none = broadcast(-std::numeric_limits<float>::infinity());
    const int64_t first_partial = layout_.slots + in_.R / kLanes * kLanes;
    for (int64_t row = 0; row < rows; ++row, scores += layout_.columns) {
      for (int64_t column = 0; column < layout_.columns; column += kLanes) {
        if (column == layout_.slots) column = first_partial;  // whole vectors of registers
        if (column == layout_.columns) break;
        store(scores + column, select(load(keep_.data() + column), load(scores + column), none));
      }
    }
  }

 private:
  const RegisterAttention& in_;
  Layout layout_;
  Scratch<int32_t> keep_;
};

}  // namespace
}  // namespace ocl

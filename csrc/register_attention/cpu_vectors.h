// The products of register attention in fp32, by the vectors of matmul.h: one of the two arithmetics of its CPU kernels.
//
// Keys and values lie in panels, packed once per call. A transposed panel holds key[key][d] as [vector of keys][d][lane], the
// natural one as [vector of d][key][lane]; keys that are masked, and lanes past the last key or past D, are zeros. Slots have a
// panel per (image, head), registers one per head that all images share. In the scores both are padded to whole vectors.
#pragma once

#include "ocl/cpu/matmul.h"
#include "register_attention/cpu_blocks.h"

namespace ocl {
namespace {

inline Layout vector_layout(const RegisterAttention& in) {
  return {round_up(in.K, kLanes), round_up(in.R, kLanes), round_up(in.D, kLanes)};
}

// One kind of panel: of the keys or of the values, transposed or natural, for slots and registers of all heads.
class VectorPanels {
 public:
  VectorPanels(const RegisterAttention& in, bool transposed, bool wanted = true)
      : in_(in),
        transposed_(transposed),
        layout_(vector_layout(in)),
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
    multiply({left, {panel(image, head), kLanes, vector}, in_.D}, num_rows, layout_.slots / kLanes,
             {scores, layout_.columns, false});
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

// out[key] (+)= sum over rows of scores[row][key] * vectors[row], for the gradients of keys and values.
class VectorKeyGradients {
 public:
  VectorKeyGradients(const RegisterAttention& in, const Wanted& wanted)
      : in_(in), wanted_(wanted), layout_(vector_layout(in)), offsets_(in, wanted, layout_.width) {}

  void begin(float* sums) {
    sums_ = sums;
    add_ = false;
  }

  void add(const Block<float>& block) {
    const int64_t slots = layout_.slots, rows = block.rows;
    if (wanted_.key) add(block.grad_scores, block.query.data, rows, in_.K, sums_ + offsets_.key);
    if (wanted_.value) add(block.attention, block.grad_output.data, rows, in_.K, sums_ + offsets_.value);
    if (wanted_.register_key) add(block.grad_scores + slots, block.query.data, rows, in_.R, sums_ + offsets_.register_key);
    if (wanted_.register_value) add(block.attention + slots, block.grad_output.data, rows, in_.R, sums_ + offsets_.register_value);
    add_ = true;
  }

  void end() const {}

 private:
  void add(const float* scores, const float* vectors, int64_t rows, int64_t keys, float* out) const {
    multiply({{scores, 1, layout_.columns}, {vectors, layout_.width, kLanes}, rows}, round_up(keys, kTileRows),
             layout_.width / kLanes, {out, layout_.width, add_});
  }

  const RegisterAttention& in_;
  Wanted wanted_;
  Layout layout_;
  SumLayout offsets_;
  float* sums_ = nullptr;
  bool add_ = false;
};

// Queries are multiplied by scale * log2(e) when they are loaded, so that scores are exponents of 2.
class VectorArithmetic {
 public:
  using Element = float;  // of the rows that multiply keys and values
  static constexpr Exp2 kExp2 = Exp2::full;
  using Panels = VectorPanels;
  using KeyGradients = VectorKeyGradients;

  explicit VectorArithmetic(const RegisterAttention& in) : in_(in), width_(row_size(in)) {}

  static Layout layout(const RegisterAttention& in) { return vector_layout(in); }
  static int64_t row_size(const RegisterAttention& in) { return vector_layout(in).width; }
  static float score_factor(const RegisterAttention&) { return 1.0f; }  // makes a score an exponent of 2
  static float key_factor(const RegisterAttention&) { return kLn2; }    // makes the sum of dS query the gradient of a key

  VectorKeyGradients key_gradients(const Wanted& wanted) const { return {in_, wanted}; }

  Rows<float> query(const void* from, int64_t stride, int64_t rows, float* to) const {
    load_rows(in_.dtype, from, stride, rows, in_.D, in_.scale * kLog2E, to, width_);
    return {to, width_};
  }

  Rows<float> grad_output(const void* from, int64_t stride, int64_t rows, float* to) const {
    load_rows(in_.dtype, from, stride, rows, in_.D, 1.0f, to, width_);
    return {to, width_};
  }

  // scores = rows panel^T
  void scores(const Rows<float>& rows, int64_t num_rows, const VectorPanels& panels, int64_t image, int64_t head, float* scores) const {
    panels.multiply_scores(rows.data, round_up(num_rows, kTileRows), image, head, scores);
  }

  // Takes the elements of scores that `weighted` will multiply: they lie in the scores themselves.
  struct Weights {
    OCL_INLINE void store(int64_t, Floats) const {}
  };
  Weights weights() const { return {}; }

  // rows = scores panel
  void weighted(const float* scores, int64_t num_rows, const VectorPanels& panels, int64_t image, int64_t head, float* rows) const {
    panels.multiply_rows(scores, round_up(num_rows, kTileRows), image, head, rows);
  }

 private:
  const RegisterAttention& in_;
  int64_t width_;
};

}  // namespace
}  // namespace ocl

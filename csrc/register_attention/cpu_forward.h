// Forward of register attention with the sums in fp32, whatever the dtype (see kernel.h for the formula). Arithmetic computes the
// products.
//
// A task owns (image, head, chunk of rows), or (image, chunk of rows) and all heads in order where maps are wanted, since a map is
// their mean. It walks over blocks of 32 rows whose scores stay in the first-level cache:
//   scores = query key^T;  scores = 2^(scores - max);  output = (scores value) / sum
// No array grows with M x (K + R). Fast for K + R up to 128 and D up to 160; correct for any.
#pragma once

#include "register_attention/cpu_blocks.h"

namespace ocl {
namespace {

constexpr int64_t kForwardChunk = 256;

template <class Arithmetic>
class ForwardBlocks {
 public:
  using Element = typename Arithmetic::Element;
  using Panels = typename Arithmetic::Panels;

  ForwardBlocks(const RegisterAttentionForward& work, const Panels& keys, const Panels& values)
      : work_(work),
        in_(work.in),
        layout_(Arithmetic::layout(work.in)),
        keys_(keys),
        values_(values),
        arithmetic_(work.in),
        exclusion_(work.in, layout_),
        query_(kBlockRows * Arithmetic::row_size(work.in)),
        scores_(kBlockRows * layout_.columns),
        output_(kBlockRows * layout_.width) {
    std::fill_n(query_.data(), kBlockRows * Arithmetic::row_size(work.in), Element{});
    std::fill_n(scores_.data(), kBlockRows * layout_.columns, 0.0f);
  }

  void set_image(int64_t image) {
    image_ = image;
    exclusion_.set_image(image);
  }

  void run(int64_t head, int64_t first_row, int64_t last_row) {
    for (int64_t row = first_row; row < last_row; row += kBlockRows) block(head, row, std::min(kBlockRows, last_row - row));
  }

 private:
  void block(int64_t head, int64_t first, int64_t rows) {
    const Rows<Element> query =
        arithmetic_.query(address(in_.query, in_.dtype, image_, head, first), in_.query.row, rows, query_.data());
    arithmetic_.scores(query, rows, keys_, image_, head, scores_.data());
    exclusion_.apply(scores_.data(), rows);
    softmax(head, first, rows);
    if (work_.logsumexp != nullptr) {
      std::copy_n(logsumexp_, rows, work_.logsumexp + (image_ * in_.H + head) * in_.M + first);
    }
    if (work_.maps != nullptr) add_to_maps(head, first, rows);
    arithmetic_.weighted(scores_.data(), rows, values_, image_, head, output_.data());
    store_rows(in_.dtype, output_.data(), layout_.width, rows, in_.D, [&](int64_t row) { return inverse_sum_[row]; },
               address(work_.output, in_.dtype, image_, head, first), work_.output.row);
  }

  // Leaves 2^(score - max), and their sums and logarithms per row. Three passes over the block rather than one per row: the
  // chain from a row's maximum to its sum is longer than what a processor looks ahead, and kLanes rows share what follows a pass.
  void softmax(int64_t head, int64_t first, int64_t rows) {
    const float infinity = std::numeric_limits<float>::infinity();
    const float sink = in_.sink_logits != nullptr ? in_.sink_logits[head] * kLog2E : -infinity;
    alignas(64) float tops[kBlockRows], totals[kBlockRows * kLanes];
    const Floats lowest = broadcast(std::max(sink, -FLT_MAX));  // finite, so that a row of -infinity becomes zeros
    const float factor = Arithmetic::score_factor(in_);
    for (int64_t row = 0; row < rows; row += kLanes) store(tops + row, maximum(largest(row) * broadcast(factor), lowest));
    for (int64_t row = 0; row < rows; ++row) {
      prefetch(head, first + row);
      store(totals + row * kLanes, exponentiate(row * layout_.columns, factor, tops[row]));
    }
    std::fill(totals + rows * kLanes, totals + round_up(rows, kLanes) * kLanes, 1.0f);  // of rows that are not there
    for (int64_t row = 0; row < rows; row += kLanes) {
      const Floats top = load(tops + row), none = {};
      Floats total = sums(totals + row * kLanes);
      if (sink != -infinity) total += exp2(broadcast(sink) - top);
      store(inverse_sum_ + row, select(total == none, none, broadcast(1.0f) / total));
      if (work_.logsumexp == nullptr) continue;
      store(logsumexp_ + row, select(total == none, broadcast(-infinity), (top + log2(total)) * broadcast(kLn2)));
    }
  }

  // Of the scores of kLanes rows.
  OCL_INLINE Floats largest(int64_t first_row) const {
    Floats tops[kLanes];
    for (int64_t row = 0; row < kLanes; ++row) {
      const float* scores = scores_.data() + (first_row + row) * layout_.columns;
      tops[row] = broadcast(-FLT_MAX);
      for (int64_t column = 0; column < layout_.columns; column += kLanes) tops[row] = maximum(tops[row], load(scores + column));
    }
    return reduce_rows(tops, [](Floats a, Floats b) { return maximum(a, b); });
  }

  OCL_INLINE static Floats sums(const float* totals) {
    Floats rows[kLanes];
    for (int64_t row = 0; row < kLanes; ++row) rows[row] = load(totals + row * kLanes);
    return reduce_rows(rows, [](Floats a, Floats b) { return a + b; });
  }

  OCL_INLINE Floats exponentiate(int64_t start, float factor, float top) const {
    const Floats factors = broadcast(factor), tops = broadcast(top);
    const auto weights = arithmetic_.weights();
    float* scores = scores_.data();
    Floats total = {};
#pragma GCC unroll 3
    for (int64_t i = start; i < start + layout_.columns; i += kLanes) {
      const Floats power = exp2<Arithmetic::kExp2>(load(scores + i) * factors - tops);
      store(scores + i, power);
      weights.store(i, power);
      total += power;
    }
    return total;
  }

  void prefetch(int64_t head, int64_t row) const {
    prefetch_row<true>(in_.dtype, address(work_.output, in_.dtype, image_, head, row), in_.D);
    prefetch_row<false>(in_.dtype, address(in_.query, in_.dtype, image_, head, std::min(row + kBlockRows, in_.M - 1)), in_.D);
  }

  void add_to_maps(int64_t head, int64_t first, int64_t rows) {
    for (int64_t k = 0; k < in_.K; ++k) {
      float* map = work_.maps + (image_ * in_.K + k) * in_.M + first;
      for (int64_t row = 0; row < rows; ++row) {
        const float mass = scores_.data()[row * layout_.columns + k] * inverse_sum_[row] / static_cast<float>(in_.H);
        map[row] = head == 0 ? mass : map[row] + mass;
      }
    }
  }

  const RegisterAttentionForward& work_;
  const RegisterAttention& in_;
  Layout layout_;
  const Panels& keys_;
  const Panels& values_;
  Arithmetic arithmetic_;
  Exclusion exclusion_;
  Scratch<Element> query_;
  Scratch<float> scores_, output_;
  alignas(64) float inverse_sum_[kBlockRows], logsumexp_[kBlockRows];
  int64_t image_ = 0;
};

template <class Arithmetic>
void forward(const RegisterAttentionForward& work, const ParallelFor& parallel) {
  const RegisterAttention& in = work.in;
  typename Arithmetic::Panels keys(in, true), values(in, false);
  parallel((in.B + 1) * in.H, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      keys.pack(in.key, in.register_key, i / in.H, i % in.H);
      values.pack(in.value, in.register_value, i / in.H, i % in.H);
    }
  });
  if (work.maps != nullptr && in.H == 0) std::fill_n(work.maps, in.B * in.K * in.M, 0.0f);
  const int64_t chunks = (in.M + kForwardChunk - 1) / kForwardChunk;
  const int64_t head_groups = work.maps != nullptr ? 1 : in.H, heads = work.maps != nullptr ? in.H : 1;
  parallel(in.B * head_groups * chunks, [&](int64_t first, int64_t last) {
    ForwardBlocks<Arithmetic> blocks(work, keys, values);
    for (int64_t i = first; i < last; ++i) {
      const int64_t group = i % head_groups, row = i / head_groups % chunks * kForwardChunk;
      blocks.set_image(i / head_groups / chunks);
      for (int64_t head = group * heads; head < (group + 1) * heads; ++head) {
        blocks.run(head, row, std::min(row + kForwardChunk, in.M));
      }
    }
  });
}

}  // namespace
}  // namespace ocl

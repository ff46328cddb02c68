// One tile of tokens at a time: its rows as fp32 vectors, and the competition of the slots for them.
#pragma once

#include "ocl/cpu/memory.h"
#include "slot_attention/cpu_products.h"
#include "slot_attention/kernel.h"

namespace ocl {
namespace {

// Tokens of one image and a fixed chunk of them make a task, so that few images still fill many cores; each leaves sums of its own.
constexpr int64_t kChunkTokens = 256;

struct Sizes {
  explicit Sizes(const SlotAttention& in)
      : slots(in.H * in.K),
        key_width(round_up(in.D, kLanes)),
        value_width(round_up(in.E, kLanes)),
        chunks(std::max<int64_t>((in.N + kChunkTokens - 1) / kChunkTokens, 1)) {}
  int64_t slots;                   // of all heads
  int64_t key_width, value_width;  // floats in a row
  int64_t chunks;                  // of an image
};

// A slot that nothing fell to (eps = 0, or no tokens) keeps zeros.
inline float inverse(float total) { return total == 0.0f ? 0.0f : 1.0f / total; }

// Tokens of all heads: read in place where rows are whole vectors of fp32, else converted to such rows.
class TokenTile {
 public:
  TokenTile(Dtype dtype, const View& view, int64_t heads, int64_t width)
      : dtype_(dtype),
        view_(view),
        heads_(heads),
        width_(width),
        padded_(round_up(width, kLanes)),
        in_place_(dtype == Dtype::float32 && width == padded_ && width > 0),
        rows_(in_place_ ? 0 : heads * kTileTokens * padded_) {}

  void read(int64_t image, int64_t first, int64_t tokens) {
    image_ = image;
    first_ = first;
    for (int64_t head = 0; head < heads_ && !in_place_ && width_ > 0; ++head) {
      load_rows(dtype_, address(view_, dtype_, image, head, first), view_.row, tokens, width_, 1.0f,
                rows_.data() + head * kTileTokens * padded_, padded_);
    }
  }

  Rows head(int64_t head) const {
    if (in_place_) return {static_cast<const float*>(address(view_, dtype_, image_, head, first_)), view_.row};
    return {rows_.data() + head * kTileTokens * padded_, padded_};
  }

  // The memory of the tile from token `first` on, where rows lie close together.
  Ahead ahead(int64_t head, int64_t first, int64_t tokens) const {
    if (tokens <= 0 || view_.row > 2 * width_) return {};
    return {address(view_, dtype_, image_, head, first), tokens * view_.row * element_size(dtype_)};
  }

 private:
  Dtype dtype_;
  View view_;
  int64_t heads_, width_, padded_;
  bool in_place_;
  Scratch<float> rows_;
  int64_t image_ = 0, first_ = 0;
};

// [heads][slots] rows of scores for the tokens of a tile; the rows of one head may be followed by others.
struct Scores {
  float* data;
  int64_t heads, slots, head_stride;

  float* head(int64_t head) const { return data + head * head_stride; }

  // use(index of the slot among those of all heads, its row)
  template <class Use>
  OCL_INLINE void each(const Use& use) const {
    for (int64_t head_index = 0; head_index < heads; ++head_index) {
      for (int64_t slot = 0; slot < slots; ++slot) use(head_index * slots + slot, head(head_index) + slot * kTileTokens);
    }
  }
};

// Logits in powers of two become their softmax over the slots of all heads, for each token: tokens lie across the lanes.
inline void compete(const Scores& scores, int64_t tokens) {
  for (int64_t lane = 0; lane < tokens; lane += kLanes) {
    Floats top = broadcast(-std::numeric_limits<float>::infinity()), total = {};
    scores.each([&](int64_t, const float* row) { top = maximum(load(row + lane), top); });
    scores.each([&](int64_t, float* row) {
      const Floats power = exp2(load(row + lane) - top);
      store(row + lane, power);
      total += power;
    });
    const Floats share = 1.0f / total;
    scores.each([&](int64_t, float* row) { store(row + lane, load(row + lane) * share); });
  }
}

// to[slot] = factor(slot) * row of the slot, in fp32 and padded.
template <class Factor>
inline void load_slots(Dtype dtype, const View& view, int64_t image, int64_t head, int64_t slots, int64_t width, const Factor& factor,
                       float* to) {
  const int64_t padded = round_up(width, kLanes);
  for (int64_t slot = 0; slot < slots && width > 0; ++slot) {
    load_rows(dtype, address(view, dtype, image, head, slot), view.row, 1, width, factor(slot), to + slot * padded, padded);
  }
}

}  // namespace
}  // namespace ocl

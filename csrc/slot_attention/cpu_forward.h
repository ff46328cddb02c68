// Forward of slot attention with the sums in fp32, whatever the dtype (see kernel.h for the formula).
//
// A task owns (image, chunk of tokens) and all heads, since the slots of all heads compete. It walks over tiles of tokens that stay in
// the second-level cache: logits, softmax, then sums += weights value. The sums of the chunks are added up in order. Nothing
// grows with N x K but `attn`, if wanted. Fast for widths that are multiples of a vector and for up to about 32 slots; correct for any.
#pragma once

#include "slot_attention/cpu_tile.h"

namespace ocl {
namespace {

// What a task leaves: rows of updates before the division, then the totals of all slots.
struct UpdateSums {
  explicit UpdateSums(const SlotAttention& in) : sizes(in), total(sizes.slots * sizes.value_width), size(total + sizes.slots) {}
  Sizes sizes;
  int64_t total, size;
};

class ForwardTiles {
 public:
  explicit ForwardTiles(const SlotAttentionForward& work)
      : work_(work),
        in_(work.in),
        sizes_(work.in),
        layout_(work.in),
        keys_(in_.dtype, in_.key, in_.H, in_.D),
        values_(in_.dtype, in_.value, in_.shared ? 0 : in_.H, in_.E),
        queries_(sizes_.slots * sizes_.key_width),
        scores_(sizes_.slots * kTileTokens),
        totals_(sizes_.slots * kLanes) {}

  void run(int64_t image, int64_t first, int64_t last, float* sums) {
    image_ = image;
    for (int64_t head = 0; head < in_.H; ++head) {
      load_slots(in_.dtype, in_.query, image, head, in_.K, in_.D, [&](int64_t) { return in_.scale * kLog2E; },
                 queries_.data() + head * in_.K * sizes_.key_width);
    }
    std::fill_n(sums, layout_.size, 0.0f);
    std::fill_n(totals_.data(), sizes_.slots * kLanes, 0.0f);
    for (int64_t token = first; token < last; token += kTileTokens) tile(token, std::min(kTileTokens, last - token), sums);
    for (int64_t slot = 0; slot < sizes_.slots; ++slot) sums[layout_.total + slot] = sum(load(totals_.data() + slot * kLanes));
  }

 private:
  void tile(int64_t first, int64_t tokens, float* sums) {
    const Scores scores{scores_.data(), in_.H, in_.K, in_.K * kTileTokens};
    const TokenTile& values = in_.shared ? keys_ : values_;
    const int64_t next = first + tokens, next_tokens = std::min(kTileTokens, in_.N - next);
    keys_.read(image_, first, tokens);
    for (int64_t head = 0; head < in_.H; ++head) {
      dot_products({queries_.data() + head * in_.K * sizes_.key_width, sizes_.key_width}, in_.K, keys_.head(head), tokens,
                   sizes_.key_width, in_.shared ? Ahead() : values_.ahead(head, first, tokens), scores.head(head));
    }
    compete(scores, tokens);
    if (work_.attn != nullptr) write_attn(scores, first, tokens);
    add_weights(scores, tokens);
    if (!in_.shared) values_.read(image_, first, tokens);
    for (int64_t head = 0; head < in_.H; ++head) {
      add_weighted(scores.head(head), in_.K, values.head(head), tokens, sizes_.value_width, keys_.ahead(head, next, next_tokens),
                   sums + head * in_.K * sizes_.value_width);
    }
  }

  void write_attn(const Scores& scores, int64_t first, int64_t tokens) const {
    float* attn = work_.attn + image_ * sizes_.slots * in_.N + first;
    scores.each([&](int64_t slot, const float* row) { std::copy_n(row, tokens, attn + slot * in_.N); });
  }

  // attn -> weights, and their sums; lanes past the last token count for nothing.
  void add_weights(const Scores& scores, int64_t tokens) {
    const Floats eps = broadcast(in_.eps_on_weights ? in_.eps : 0.0f);
    scores.each([&](int64_t slot, float* row) {
      for (int64_t lane = tokens; lane < round_up(tokens, kLanes); ++lane) row[lane] = -eps[0];
      Floats total = load(totals_.data() + slot * kLanes);
      for (int64_t lane = 0; lane < tokens; lane += kLanes) {
        const Floats weight = load(row + lane) + eps;
        store(row + lane, weight);
        total += weight;
      }
      store(totals_.data() + slot * kLanes, total);
    });
  }

  const SlotAttentionForward& work_;
  const SlotAttention& in_;
  Sizes sizes_;
  UpdateSums layout_;
  TokenTile keys_, values_;
  Scratch<float> queries_, scores_, totals_;
  int64_t image_ = 0;
};

inline void add_row(const float* from, int64_t width, float* to) {
  for (int64_t i = 0; i < width; i += kLanes) store(to + i, load(to + i) + load(from + i));
}

// Adds up row `slot` of the chunks of an image, in order, into the first; returns the sum of the totals.
inline float add_chunks(const UpdateSums& layout, int64_t slot, float* sums) {
  const int64_t width = layout.sizes.value_width;
  float total = sums[layout.total + slot];
  for (int64_t chunk = 1; chunk < layout.sizes.chunks; ++chunk) {
    const float* more = sums + chunk * layout.size;
    add_row(more + slot * width, width, sums + slot * width);
    total += more[layout.total + slot];
  }
  return total;
}

inline void forward(const SlotAttentionForward& work, const ParallelFor& parallel) {
  const SlotAttention& in = work.in;
  const UpdateSums layout(in);
  const int64_t chunks = layout.sizes.chunks, slots = layout.sizes.slots;
  const Scratch<float> sums(in.B * chunks * layout.size);
  parallel(in.B * chunks, [&](int64_t first, int64_t last) {
    ForwardTiles tiles(work);
    for (int64_t i = first; i < last; ++i) {
      const int64_t token = i % chunks * kChunkTokens;
      tiles.run(i / chunks, token, std::min(token + kChunkTokens, in.N), sums.data() + i * layout.size);
    }
  });
  parallel(in.B * slots, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t image = i / slots, slot = i % slots;
      float* of_image = sums.data() + image * chunks * layout.size;
      work.total[i] = add_chunks(layout, slot, of_image) + (in.eps_on_weights ? 0.0f : in.eps);
      store_rows(in.dtype, of_image + slot * layout.sizes.value_width, 0, 1, in.E, [&](int64_t) { return inverse(work.total[i]); },
                 address(work.updates, in.dtype, image, slot / in.K, slot % in.K), 0);
    }
  });
}

}  // namespace
}  // namespace ocl

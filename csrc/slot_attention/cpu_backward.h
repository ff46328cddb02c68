// Backward of slot attention with the sums in fp32, whatever the dtype. For a tile of tokens, with a = softmax of the logits:
//   chosen = value . dupdates / total,  g = chosen - dupdates . updates / total + dattn,  dlogits = a (g - sum over slots of a g)
//   dquery += dlogits key,  dkey = dlogits query,  dvalue = (a + eps) dupdates / total
// The rows of query and dupdates of a head lie one after another, and so do their scores. Where `shared`, both dot products are then
// one pass over the tile, and so is the gradient: [dlogits, a + eps] [query; dupdates].
// A task owns (image, chunk of tokens); the sums for dquery are added up chunk by chunk, in order. Products that lead only to
// gradients nobody wants are left out.
#pragma once

#include "slot_attention/cpu_forward.h"

namespace ocl {
namespace {

class BackwardTiles {
 public:
  explicit BackwardTiles(const SlotAttentionBackward& work)
      : work_(work),
        in_(work.in),
        sizes_(work.in),
        logits_wanted_(work.grad_query.data != nullptr || work.grad_key.data != nullptr),
        keys_(in_.dtype, in_.key, in_.H, in_.D),
        values_(in_.dtype, in_.value, in_.shared ? 0 : in_.H, in_.E),
        rows_(sizes_.slots * (sizes_.key_width + sizes_.value_width)),
        updates_(in_.K * sizes_.value_width),
        shift_(sizes_.slots),
        scores_(2 * sizes_.slots * kTileTokens) {}

  // Leaves the sums for dquery, [slots][key_width].
  void run(int64_t image, int64_t first, int64_t last, float* sums) {
    image_ = image;
    for (int64_t head = 0; head < in_.H; ++head) load_head(head);
    if (work_.grad_query.data != nullptr) std::fill_n(sums, sizes_.slots * sizes_.key_width, 0.0f);
    for (int64_t token = first; token < last; token += kTileTokens) tile(token, std::min(kTileTokens, last - token), sums);
  }

 private:
  float* queries(int64_t head) const { return rows_.data() + head * in_.K * (sizes_.key_width + sizes_.value_width); }
  float* grad_updates(int64_t head) const { return queries(head) + in_.K * sizes_.key_width; }

  Scores attention() const { return {scores_.data(), in_.H, in_.K, 2 * in_.K * kTileTokens}; }
  Scores chosen() const { return {scores_.data() + in_.K * kTileTokens, in_.H, in_.K, 2 * in_.K * kTileTokens}; }

  // query, dupdates / total, and dupdates . updates / total.
  void load_head(int64_t head) {
    const float* totals = work_.total + image_ * sizes_.slots + head * in_.K;
    load_slots(in_.dtype, in_.query, image_, head, in_.K, in_.D, [&](int64_t) { return in_.scale * kLog2E; }, queries(head));
    load_slots(in_.dtype, work_.grad_updates, image_, head, in_.K, in_.E, [&](int64_t slot) { return inverse(totals[slot]); },
               grad_updates(head));
    load_slots(in_.dtype, work_.updates, image_, head, in_.K, in_.E, [](int64_t) { return 1.0f; }, updates_.data());
    for (int64_t slot = 0; slot < in_.K; ++slot) {
      Floats products = {};
      for (int64_t i = slot * sizes_.value_width; i < (slot + 1) * sizes_.value_width; i += kLanes) {
        products = load(grad_updates(head) + i) * load(updates_.data() + i) + products;
      }
      shift_.data()[head * in_.K + slot] = sum(products);
    }
  }

  void tile(int64_t first, int64_t tokens, float* sums) {
    keys_.read(image_, first, tokens);
    if (!in_.shared && logits_wanted_) values_.read(image_, first, tokens);
    for (int64_t head = 0; head < in_.H; ++head) score(head, tokens);
    compete(attention(), tokens);
    logits_wanted_ ? differentiate(first, tokens) : make_weights(tokens);
    for (int64_t head = 0; head < in_.H; ++head) write(head, first, tokens, sums + head * in_.K * sizes_.key_width);
  }

  void score(int64_t head, int64_t tokens) const {
    const bool together = in_.shared && logits_wanted_;
    dot_products({queries(head), sizes_.key_width}, together ? 2 * in_.K : in_.K, keys_.head(head), tokens, sizes_.key_width,
                 Ahead(), attention().head(head));
    if (together || !logits_wanted_) return;
    dot_products({grad_updates(head), sizes_.value_width}, in_.K, values_.head(head), tokens, sizes_.value_width, Ahead(), chosen().head(head));
  }

  // attention -> dlogits (of logits in powers of two, as the queries have them), chosen -> weights.
  void differentiate(int64_t first, int64_t tokens) const {
    const int64_t to_chosen = in_.K * kTileTokens;
    const float* grad_attn = work_.grad_attn == nullptr ? nullptr : work_.grad_attn + image_ * sizes_.slots * in_.N + first;
    const Floats eps = broadcast(weight_eps()), ln2 = broadcast(kLn2);
    for (int64_t lane = 0; lane < tokens; lane += kLanes) {
      Floats mean = {};
      attention().each([&](int64_t slot, float* row) {
        Floats grad = load(row + to_chosen + lane) - broadcast(shift_.data()[slot]);
        if (grad_attn != nullptr) grad += load_some(grad_attn + slot * in_.N + lane, std::min(kLanes, tokens - lane));
        store(row + to_chosen + lane, grad);
        mean = load(row + lane) * grad + mean;
      });
      attention().each([&](int64_t, float* row) {
        const Floats share = load(row + lane);
        store(row + lane, share * (load(row + to_chosen + lane) - mean) * ln2);
        store(row + to_chosen + lane, share + eps);
      });
    }
  }

  void make_weights(int64_t tokens) const {
    const Floats eps = broadcast(weight_eps());
    attention().each([&](int64_t, float* row) {
      for (int64_t lane = 0; lane < tokens; lane += kLanes) store(row + in_.K * kTileTokens + lane, load(row + lane) + eps);
    });
  }

  float weight_eps() const { return in_.eps_on_weights ? in_.eps : 0.0f; }

  void write(int64_t head, int64_t first, int64_t tokens, float* sums) const {
    const int64_t next = first + tokens, next_tokens = std::min(kTileTokens, in_.N - next);
    const float* grad_logits = attention().head(head);
    if (work_.grad_query.data != nullptr) {
      add_weighted(grad_logits, in_.K, keys_.head(head), tokens, sizes_.key_width, Ahead(), sums);
    }
    if (work_.grad_key.data != nullptr) {
      combinations(in_.dtype, grad_logits, {queries(head), sizes_.key_width}, in_.shared ? 2 * in_.K : in_.K, tokens, in_.D, keys_.ahead(head, next, next_tokens),
                   address(work_.grad_key, in_.dtype, image_, head, first), work_.grad_key.row);
    }
    if (work_.grad_value.data != nullptr) {
      combinations(in_.dtype, chosen().head(head), {grad_updates(head), sizes_.value_width}, in_.K, tokens, in_.E, values_.ahead(head, next, next_tokens),
                   address(work_.grad_value, in_.dtype, image_, head, first), work_.grad_value.row);
    }
  }

  const SlotAttentionBackward& work_;
  const SlotAttention& in_;
  Sizes sizes_;
  bool logits_wanted_;
  TokenTile keys_, values_;
  Scratch<float> rows_, updates_, shift_, scores_;
  int64_t image_ = 0;
};

inline void backward(const SlotAttentionBackward& work, const ParallelFor& parallel) {
  const SlotAttention& in = work.in;
  const Sizes sizes(in);
  const int64_t size = sizes.slots * sizes.key_width;
  const bool query_wanted = work.grad_query.data != nullptr;
  const Scratch<float> sums(query_wanted ? in.B * sizes.chunks * size : 0);
  parallel(in.B * sizes.chunks, [&](int64_t first, int64_t last) {
    BackwardTiles tiles(work);
    for (int64_t i = first; i < last; ++i) {
      const int64_t token = i % sizes.chunks * kChunkTokens;
      tiles.run(i / sizes.chunks, token, std::min(token + kChunkTokens, in.N), query_wanted ? sums.data() + i * size : nullptr);
    }
  });
  if (!query_wanted) return;
  parallel(in.B * sizes.slots, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t image = i / sizes.slots, slot = i % sizes.slots;
      float* row = sums.data() + image * sizes.chunks * size + slot * sizes.key_width;
      for (int64_t chunk = 1; chunk < sizes.chunks; ++chunk) add_row(row + chunk * size, sizes.key_width, row);
      store_rows(in.dtype, row, 0, 1, in.D, [&](int64_t) { return in.scale * kLog2E; },
                 address(work.grad_query, in.dtype, image, slot / in.K, slot % in.K), 0);
    }
  });
}

}  // namespace
}  // namespace ocl

// The three products between many tokens and few slots, in fp32 with the sums in registers. Rows are whole vectors, scores and
// weights are [slot][token of the tile]:
//   dot_products    scores[slot][token] = slot row . token row                 vectors along the width, summed over lanes at the end
//   add_weighted    out[slot] += sum over tokens of weights[slot][token] * token row
//   combinations    out[token] = sum over slots of weights[slot][token] * slot row, rounded once to the dtype
// Every number is summed in an order of its own, whatever the rows beside it. Each block of 12 sums needs 7 loads for 12 fused
// multiply-adds, and no lane is wasted for any number of slots.
#pragma once

#include "ocl/cpu/convert.h"

namespace ocl {
namespace {

constexpr int64_t kTileTokens = 32;

struct Rows {
  const float* data;  // row i at data + i * stride
  int64_t stride;
  const float* operator[](int64_t i) const { return data + i * stride; }
};

// Memory that will be needed next, fetched while a product keeps the arithmetic units busy: a product walks over its rows in strips,
// which the processor does not foresee.
struct Lines {
  const char* next;
  int64_t step;
  OCL_INLINE void fetch() {
    __builtin_prefetch(next);
    next += step;
  }
};

class Ahead {
 public:
  Ahead() : Ahead(nullptr, 0) {}
  Ahead(const void* first, int64_t bytes) : next_(static_cast<const char*>(first)), left_(bytes) {}

  // Spreads what is left evenly over so many fetches (at most a line each): more at a time than memory delivers would stall.
  void spread(int64_t fetches) { step_ = std::min(kLine, (left_ + fetches - 1) / std::max<int64_t>(fetches, 1)); }

  // For `count` fetches; when nothing is left, of a line that is in the cache anyway.
  Lines take(int64_t count) {
    if (left_ <= 0) return {reinterpret_cast<const char*>(this), 0};
    const char* first = next_;
    next_ += count * step_;
    left_ -= count * step_;
    return {first, step_};
  }

 private:
  static constexpr int64_t kLine = 64;
  const char* next_;
  int64_t left_, step_ = kLine;
};

// to[i] = sum over the lanes of values[i].
OCL_INLINE void store_lane_sums(float* to, const Floats (&values)[4]) {
#if defined(OCL_TARGET_AVX512) || defined(OCL_TARGET_AVX2)
  struct Halves256 {
    __m256 part[OCL_VECTOR_BYTES / 32];
  };
  __m256 halves[4];
  for (int i = 0; i < 4; ++i) {
    const auto parts = bit_cast<Halves256>(values[i]);
    halves[i] = OCL_VECTOR_BYTES == 64 ? _mm256_add_ps(parts.part[0], parts.part[OCL_VECTOR_BYTES / 32 - 1]) : parts.part[0];
  }
  const __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(halves[0], halves[1]), _mm256_hadd_ps(halves[2], halves[3]));
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
#else
  for (int i = 0; i < 4; ++i) to[i] = sum(values[i]);
#endif
}

constexpr int64_t kDotTokens = 4;
constexpr int64_t kDotSlots = OCL_VECTOR_BYTES == 64 ? 6 : 3;

template <int kSlots>
__attribute__((noinline)) void dot_tile(Rows slots, const float* const (&tokens)[kDotTokens], int64_t width, Lines ahead,
                                        float* scores) {
  Floats sums[kSlots][kDotTokens];
#pragma GCC unroll 8
  for (int slot = 0; slot < kSlots; ++slot) {
#pragma GCC unroll 8
    for (int token = 0; token < kDotTokens; ++token) sums[slot][token] = Floats{};
  }
  const float *first = tokens[0], *second = tokens[1], *third = tokens[2], *fourth = tokens[3];
  for (int64_t i = 0; i < width; i += kLanes) {
    ahead.fetch();
    Floats slot_part[kSlots];
#pragma GCC unroll 8
    for (int slot = 0; slot < kSlots; ++slot) slot_part[slot] = load(slots[slot] + i);
    const float* const parts[kDotTokens] = {first + i, second + i, third + i, fourth + i};
#pragma GCC unroll 8
    for (int token = 0; token < kDotTokens; ++token) {
      const Floats token_part = load(parts[token]);
#pragma GCC unroll 8
      for (int slot = 0; slot < kSlots; ++slot) sums[slot][token] = token_part * slot_part[slot] + sums[slot][token];
    }
  }
#pragma GCC unroll 8
  for (int slot = 0; slot < kSlots; ++slot) store_lane_sums(scores + slot * kTileTokens, sums[slot]);
}

// Calls use(first row, integral constant: number of rows) for blocks of kMost rows; the last two share what is left.
template <int kMost, class Use>
OCL_INLINE void in_blocks(int64_t rows, const Use& use) {
  int64_t size = 0;
  for (int64_t first = 0; first < rows; first += size) {
    const int64_t left = rows - first;
    size = left >= 2 * kMost ? kMost : left > kMost ? (left + 1) / 2 : left;
    switch (size) {
      case 1: use(first, std::integral_constant<int, 1>()); break;
      case 2: use(first, std::integral_constant<int, std::min(kMost, 2)>()); break;
      case 3: use(first, std::integral_constant<int, std::min(kMost, 3)>()); break;
      case 4: use(first, std::integral_constant<int, std::min(kMost, 4)>()); break;
      case 5: use(first, std::integral_constant<int, std::min(kMost, 5)>()); break;
      case 6: use(first, std::integral_constant<int, std::min(kMost, 6)>()); break;
    }
  }
}

template <int kMost>
OCL_INLINE int64_t num_blocks(int64_t rows) {
  return (rows + kMost - 1) / kMost;
}

// Scores up to the next whole vector of tokens are written too: copies of the last token's.
inline void dot_products(Rows slots, int64_t num_slots, Rows tokens, int64_t num_tokens, int64_t width, Ahead ahead, float* scores) {
  ahead.spread(round_up(num_tokens, kLanes) / kDotTokens * num_blocks<kDotSlots>(num_slots) * (width / kLanes));
  for (int64_t token = 0; token < round_up(num_tokens, kLanes); token += kDotTokens) {
    const float* rows[kDotTokens];
    for (int64_t i = 0; i < kDotTokens; ++i) rows[i] = tokens[std::min(token + i, num_tokens - 1)];
    in_blocks<kDotSlots>(num_slots, [&](int64_t slot, auto count) {
      dot_tile<count.value>({slots[slot], slots.stride}, rows, width, ahead.take(width / kLanes), scores + slot * kTileTokens + token);
    });
  }
}

constexpr int64_t kTileRows = 4;
constexpr int64_t kTileVectors = OCL_VECTOR_BYTES == 64 ? 6 : 3;

template <int kSlots, int kVectors>
__attribute__((noinline)) void add_weighted_tile(const float* weights, Rows tokens, int64_t num_tokens, Lines ahead, float* out,
                                                 int64_t out_stride) {
  Floats sums[kSlots][kVectors];
#pragma GCC unroll 8
  for (int slot = 0; slot < kSlots; ++slot) {
#pragma GCC unroll 8
    for (int vector = 0; vector < kVectors; ++vector) sums[slot][vector] = Floats{};
  }
  const float* row = tokens.data;
  for (int64_t token = 0; token < num_tokens; ++token, row += tokens.stride) {
    ahead.fetch();
    Floats parts[kVectors];
#pragma GCC unroll 8
    for (int vector = 0; vector < kVectors; ++vector) parts[vector] = load(row + vector * kLanes);
#pragma GCC unroll 8
    for (int slot = 0; slot < kSlots; ++slot) {
      const Floats weight = broadcast(weights[slot * kTileTokens + token]);
#pragma GCC unroll 8
      for (int vector = 0; vector < kVectors; ++vector) sums[slot][vector] = weight * parts[vector] + sums[slot][vector];
    }
  }
#pragma GCC unroll 8
  for (int slot = 0; slot < kSlots; ++slot) {
#pragma GCC unroll 8
    for (int vector = 0; vector < kVectors; ++vector) {
      float* to = out + slot * out_stride + vector * kLanes;
      store(to, load(to) + sums[slot][vector]);
    }
  }
}

inline void add_weighted(const float* weights, int64_t num_slots, Rows tokens, int64_t num_tokens, int64_t width, Ahead ahead,
                         float* out) {
  ahead.spread(num_blocks<kTileVectors>(width / kLanes) * num_blocks<kTileRows>(num_slots) * num_tokens);
  in_blocks<kTileVectors>(width / kLanes, [&](int64_t vector, auto vectors) {
    in_blocks<kTileRows>(num_slots, [&](int64_t slot, auto rows) {
      add_weighted_tile<rows.value, vectors.value>(weights + slot * kTileTokens, {tokens.data + vector * kLanes, tokens.stride},
                                                   num_tokens, ahead.take(num_tokens), out + slot * width + vector * kLanes, width);
    });
  });
}

template <int kTokens, int kVectors>
OCL_INLINE void combine(const float* weights, Rows slots, int64_t num_slots, Lines ahead, Floats (&sums)[kTokens][kVectors]) {
#pragma GCC unroll 8
  for (int token = 0; token < kTokens; ++token) {
#pragma GCC unroll 8
    for (int vector = 0; vector < kVectors; ++vector) sums[token][vector] = Floats{};
  }
  for (int64_t slot = 0; slot < num_slots; ++slot) {
    ahead.fetch();
    Floats parts[kVectors];
#pragma GCC unroll 8
    for (int vector = 0; vector < kVectors; ++vector) parts[vector] = load(slots[slot] + vector * kLanes);
#pragma GCC unroll 8
    for (int token = 0; token < kTokens; ++token) {
      const Floats weight = broadcast(weights[slot * kTileTokens + token]);
#pragma GCC unroll 8
      for (int vector = 0; vector < kVectors; ++vector) sums[token][vector] = weight * parts[vector] + sums[token][vector];
    }
  }
}

// Rows of kTokens tokens; `width` is the width of the output, the slots' rows go on to the next whole vector.
template <int kTokens, class Element>
__attribute__((noinline)) void combine_rows(const float* weights, Rows slots, int64_t num_slots, int64_t width, Ahead& ahead,
                                            Element* out, int64_t out_stride) {
  const int64_t whole = width / kLanes * kLanes;
  in_blocks<kTileVectors>(width / kLanes, [&](int64_t vector, auto vectors) {
    Floats sums[kTokens][vectors.value];
    combine(weights, {slots.data + vector * kLanes, slots.stride}, num_slots, ahead.take(num_slots), sums);
#pragma GCC unroll 8
    for (int token = 0; token < kTokens; ++token) {
#pragma GCC unroll 8
      for (int i = 0; i < vectors.value; ++i) store(out + token * out_stride + (vector + i) * kLanes, sums[token][i]);
    }
  });
  if (whole == width) return;
  Floats sums[kTokens][1];
  combine(weights, {slots.data + whole, slots.stride}, num_slots, ahead.take(num_slots), sums);
  for (int token = 0; token < kTokens; ++token) store_some(out + token * out_stride + whole, sums[token][0], width - whole);
}

inline void combinations(Dtype dtype, const float* weights, Rows slots, int64_t num_slots, int64_t num_tokens, int64_t width,
                         Ahead ahead, void* out, int64_t out_stride) {
  ahead.spread(num_blocks<kTileRows>(num_tokens) * (num_blocks<kTileVectors>(width / kLanes) + (width % kLanes != 0)) * num_slots);
  with_element(dtype, [&](auto* kind) {
    auto* rows = static_cast<decltype(kind)>(out);
    in_blocks<kTileRows>(num_tokens, [&](int64_t token, auto count) {
      combine_rows<count.value>(weights + token, slots, num_slots, width, ahead, rows + token * out_stride, out_stride);
    });
  });
}

}  // namespace
}  // namespace ocl

// Contingency table of two label maps (Hubert & Arabie 1985, table 1), the one thing every segmentation score is made of.
//
// table[p][t] = number of pixels that pred labels p and true labels t, for 0 <= p < num_pred and 0 <= t < num_true;
// table[p][num_true] = number of ignored pixels that pred labels p, so that ignored pixels can be treated in any way later.
//
// Label maps are long runs of one value. The pass below compares a block of pixels with the run it is in (the compiler
// turns that into a few vector instructions) and touches the table once per run; the range check is per run as well.
#pragma once

#include <cstdint>

namespace ocl {

struct LabelRange {
  std::int64_t low;   // low > high: no pixel counts
  std::int64_t high;
};

constexpr std::int64_t kBlock = 16;  // pixels compared at once

// Smallest and largest label outside `ignore` (may be null: every pixel counts).
template <class Label>
LabelRange label_range(const Label* labels, const std::uint8_t* ignore, std::int64_t num_pixels) {
  bool found = false;
  Label low = 0, high = 0;
  std::int64_t first = 0;
  for (; first < num_pixels && !found; ++first) {
    found = ignore == nullptr || !ignore[first];
    if (found) low = high = labels[first];
  }
  if (!found) return {0, -1};
  for (std::int64_t i = first; i < num_pixels; ++i) {
    const Label label = ignore != nullptr && ignore[i] ? low : labels[i];
    low = label < low ? label : low;
    high = label > high ? label : high;
  }
  return {static_cast<std::int64_t>(low), static_cast<std::int64_t>(high)};
}

namespace detail {

template <class Value>
bool block_equals(const Value* values, Value expected) {
  Value difference = 0;
  for (std::int64_t i = 0; i < kBlock; ++i) difference |= static_cast<Value>(values[i] ^ expected);
  return difference == 0;
}

}  // namespace detail

// Adds the pixels of one image to `table` [num_pred, num_true + 1]. Any byte but 0 in `ignore` (may be null) ignores a pixel.
// A label outside its range is an error unless the pixel is ignored; then the pixel is counted only if its pred fits.
// Returns the offset of the first pixel that breaks the rule, or -1.
template <class Pred, class True>
std::int64_t count_pairs(const Pred* pred, const True* truth, const std::uint8_t* ignore, std::int64_t num_pixels,
                         std::int64_t num_pred, std::int64_t num_true, std::int64_t* table) {
  if (num_pixels <= 0) return -1;
  std::int64_t run_start = 0;
  Pred run_pred = pred[0];
  True run_true = truth[0];
  std::uint8_t run_ignore = ignore ? ignore[0] : 0;

  const auto finish_run = [&](std::int64_t end) {
    const auto p = static_cast<std::int64_t>(run_pred);
    const auto t = run_ignore ? num_true : static_cast<std::int64_t>(run_true);
    if (p < 0 || p >= num_pred) return run_ignore != 0;
    if (!run_ignore && (t < 0 || t >= num_true)) return false;
    table[p * (num_true + 1) + t] += end - run_start;
    return true;
  };

  std::int64_t i = 1;
  while (i < num_pixels) {
    if (i + kBlock <= num_pixels && detail::block_equals(pred + i, run_pred) && detail::block_equals(truth + i, run_true) &&
        (!ignore || detail::block_equals(ignore + i, run_ignore))) {
      i += kBlock;
      continue;
    }
    const std::int64_t stop = i + kBlock < num_pixels ? i + kBlock : num_pixels;
    for (; i < stop; ++i) {
      const std::uint8_t ignored = ignore ? ignore[i] : 0;
      if (pred[i] == run_pred && truth[i] == run_true && ignored == run_ignore) continue;
      if (!finish_run(i)) return run_start;
      run_start = i;
      run_pred = pred[i];
      run_true = truth[i];
      run_ignore = ignored;
    }
  }
  return finish_run(num_pixels) ? -1 : run_start;
}

}  // namespace ocl

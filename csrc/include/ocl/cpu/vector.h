// A vector of floats as wide as the instruction set of the file (see target_begin.h), and the functions that kernels need on it.
// GCC and Clang vector types: + - * / and comparisons work per lane, a * b + c becomes one fused instruction where there is one.
#pragma once

#define OCL_INLINE inline __attribute__((always_inline))

namespace ocl {
namespace {

using Floats = float __attribute__((vector_size(OCL_VECTOR_BYTES)));
using Bits = uint32_t __attribute__((vector_size(OCL_VECTOR_BYTES)));
using Mask = int32_t __attribute__((vector_size(OCL_VECTOR_BYTES)));  // per lane 0 or -1, as comparisons give it
using Halves = uint16_t __attribute__((vector_size(OCL_VECTOR_BYTES / 2)));

constexpr int64_t kLanes = OCL_VECTOR_BYTES / 4;

constexpr int64_t round_up(int64_t size, int64_t multiple) { return (size + multiple - 1) / multiple * multiple; }

template <class To, class From>
OCL_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

OCL_INLINE Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

OCL_INLINE Mask load(const int32_t* from) {
  Mask value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

OCL_INLINE void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }

OCL_INLINE Floats broadcast(float value) { return value - Floats{}; }

OCL_INLINE Floats select(Mask mask, Floats yes, Floats no) { return mask ? yes : no; }

// a > b ? a : b, as one instruction: a NaN in a is lost, one in b stays.
OCL_INLINE Floats maximum(Floats a, Floats b) {
#if defined(OCL_TARGET_AMX) || defined(OCL_TARGET_AVX512)
  return bit_cast<Floats>(_mm512_max_ps(bit_cast<__m512>(a), bit_cast<__m512>(b)));
#elif defined(OCL_TARGET_AVX2)
  return bit_cast<Floats>(_mm256_max_ps(bit_cast<__m256>(a), bit_cast<__m256>(b)));
#else
  return a > b ? a : b;
#endif
}

// Lane j becomes lane index[j] of a, or lane index[j] - kLanes of b.
OCL_INLINE Bits permute(Bits a, Bits b, Bits index) {
#if defined(OCL_TARGET_AMX) || defined(OCL_TARGET_AVX512)
  return bit_cast<Bits>(_mm512_permutex2var_epi32(bit_cast<__m512i>(a), bit_cast<__m512i>(index), bit_cast<__m512i>(b)));
#else
  Bits result;
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const uint32_t from = index[lane];
    result[lane] = from < kLanes ? a[from] : b[from - kLanes];
  }
  return result;
#endif
}

// Sum and maximum over lanes, by halving.
OCL_INLINE float sum(Floats value) {
  alignas(OCL_VECTOR_BYTES) float lanes[kLanes];
  store(lanes, value);
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

OCL_INLINE float maximum(Floats value) {
  alignas(OCL_VECTOR_BYTES) float lanes[kLanes];
  store(lanes, value);
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
  }
  return lanes[0];
}

// 2^x to about 1 ulp for x < 128; exactly 0 for x <= -127, -infinity included; NaN stays NaN.
// x = n + r with |r| <= 1/2: 2^r by its minimax polynomial (relative error 2e-9), n added to the exponent. Adding 1.5 * 2^23 rounds
// to an integer and leaves it in the low bits. The polynomial is exactly 1 at r = 0, so that n = -127 empties the exponent.
OCL_INLINE Floats exp2(Floats x) {
  const Floats round = broadcast(12582912.0f), lowest = broadcast(-127.0f);
  x = maximum(lowest, x);
  const Floats shifted = x + round;
  const Floats r = x - (shifted - round);
  Floats power = broadcast(1.53533620e-4f);
  power = power * r + broadcast(1.33988739e-3f);
  power = power * r + broadcast(9.61843692e-3f);
  power = power * r + broadcast(5.55033237e-2f);
  power = power * r + broadcast(2.40226477e-1f);
  power = power * r + broadcast(6.93147182e-1f);
  power = power * r + broadcast(1.0f);
  return bit_cast<Floats>(bit_cast<Bits>(power) + (bit_cast<Bits>(shifted) << 23));
}

// The same for one number.
inline float exp2(float x) { return exp2(broadcast(x))[0]; }

constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.693147181f;

}  // namespace
}  // namespace ocl

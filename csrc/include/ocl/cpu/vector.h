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
#if defined(OCL_TARGET_AVX512)
  return bit_cast<Floats>(_mm512_max_ps(bit_cast<__m512>(a), bit_cast<__m512>(b)));
#elif defined(OCL_TARGET_AVX2)
  return bit_cast<Floats>(_mm256_max_ps(bit_cast<__m256>(a), bit_cast<__m256>(b)));
#else
  return a > b ? a : b;
#endif
}

// Lane j becomes lane index[j] of a, or lane index[j] - kLanes of b.
OCL_INLINE Bits permute(Bits a, Bits b, Bits index) {
#if defined(OCL_TARGET_AVX512)
  return bit_cast<Bits>(_mm512_permutex2var_epi32(bit_cast<__m512i>(a), bit_cast<__m512i>(index), bit_cast<__m512i>(b)));
#elif !defined(__clang__)
  return __builtin_shuffle(a, b, index);
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

// Two rows that lie kDistance apart swap: a keeps its lanes j without the bit kDistance in j, b those with it.
template <int64_t kDistance>
OCL_INLINE void swap_lanes(Bits& a, Bits& b) {
  Bits low, high;
  for (uint32_t lane = 0; lane < kLanes; ++lane) {
    const bool upper = (lane & kDistance) != 0;
    low[lane] = upper ? kLanes + lane - kDistance : lane;
    high[lane] = upper ? kLanes + lane : lane + kDistance;
  }
  const Bits lower = permute(a, b, low);
  b = permute(a, b, high);
  a = lower;
}

// Lane j becomes what `combine` makes of all lanes of rows[j], by halves: as many steps as for one row, not kLanes times as many.
template <class Combine>
OCL_INLINE Floats reduce_rows(Floats (&rows)[kLanes], const Combine& combine) {
  const auto halve = [&](auto distance) {
    constexpr int64_t kDistance = decltype(distance)::value;
    if constexpr (kDistance < kLanes) {
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; i += 2 * kDistance) {
        Bits a = bit_cast<Bits>(rows[i]), b = bit_cast<Bits>(rows[i + kDistance]);
        swap_lanes<kDistance>(a, b);
        rows[i] = combine(bit_cast<Floats>(a), bit_cast<Floats>(b));
      }
    }
  };
  halve(std::integral_constant<int64_t, 1>());
  halve(std::integral_constant<int64_t, 2>());
  halve(std::integral_constant<int64_t, 4>());
  halve(std::integral_constant<int64_t, 8>());
  return rows[0];
}

// The polynomial in x with these coefficients, of the highest power first.
template <class... Coefficients>
OCL_INLINE Floats polynomial(Floats x, float highest, Coefficients... others) {
  Floats value = broadcast(highest);
  ((value = value * x + broadcast(others)), ...);
  return value;
}

// 2^x to about 1 ulp, or to 3e-6, which a result in bfloat16 does not show; for x < 128; exactly 0 for x <= -127, -infinity
// included; NaN stays NaN. The minimax polynomials are exactly 1 at 0. AVX-512 splits x = n + r with 0 <= r < 1 and multiplies by 2^n.
// Elsewhere |r| <= 1/2: adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits, from where it is added to the exponent;
// n = -127 empties the exponent.
enum class Exp2 { full, coarse };

template <Exp2 kExp2 = Exp2::full>
OCL_INLINE Floats exp2(Floats x) {
#if defined(OCL_TARGET_AVX512)
  const Floats r = bit_cast<Floats>(_mm512_reduce_ps(bit_cast<__m512>(x), _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC));
  const Floats power =
      kExp2 == Exp2::coarse
          ? polynomial(r, 1.34266843e-2f, 5.22424743e-2f, 2.41280205e-1f, 6.93044845e-1f, 1.0f)
          : polynomial(r, 2.16129145e-4f, 1.24678466e-3f, 9.67545155e-3f, 5.54852806e-2f, 2.40229306e-1f, 6.93147044e-1f, 1.0f);
  const __mmask16 kept = _mm512_cmp_ps_mask(bit_cast<__m512>(x), _mm512_set1_ps(-127.0f), _CMP_NLE_UQ);
  return bit_cast<Floats>(_mm512_maskz_scalef_ps(kept, bit_cast<__m512>(power), bit_cast<__m512>(x)));
#else
  const Floats round = broadcast(12582912.0f), lowest = broadcast(-127.0f);
  x = maximum(lowest, x);
  const Floats shifted = x + round;
  const Floats r = x - (shifted - round);
  const Floats power =
      kExp2 == Exp2::coarse
          ? polynomial(r, 9.58285303e-3f, 5.59064246e-2f, 2.40240986e-1f, 6.93124193e-1f, 1.0f)
          : polynomial(r, 1.53533620e-4f, 1.33988739e-3f, 9.61843692e-3f, 5.55033237e-2f, 2.40226477e-1f, 6.93147182e-1f, 1.0f);
  return bit_cast<Floats>(bit_cast<Bits>(power) + (bit_cast<Bits>(shifted) << 23));
#endif
}

// The same for one number.
inline float exp2(float x) { return exp2(broadcast(x))[0]; }

// log2(x) to about 1 ulp of a result beyond 1 or of 1, for normal numbers; NaN stays NaN. x = 2^n m with 1/sqrt(2) <= m < sqrt(2), and
// log2(m) = 2 / ln(2) * artanh(s) for s = (m - 1) / (m + 1), whose series ends below an ulp.
OCL_INLINE Floats log2(Floats x) {
  const Bits from_half = bit_cast<Bits>(x) - 0x3f3504f3;  // of 1 / sqrt(2): its high bits are n
  const Mask n = bit_cast<Mask>(from_half) >> 23;
  const Floats m = bit_cast<Floats>((from_half & 0x7fffff) + 0x3f3504f3);
  const Floats s = (m - broadcast(1.0f)) / (m + broadcast(1.0f)), t = s * s;
  const Floats series = polynomial(t, 0.320598898f, 0.412198583f, 0.577078016f, 0.961796694f, 2.88539008f);
  return select(x != x, x, series * s + __builtin_convertvector(n, Floats));
}

constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.693147181f;

}  // namespace
}  // namespace ocl

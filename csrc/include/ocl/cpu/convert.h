// Rows of float32, bfloat16 or float16 to fp32 and back; narrowing rounds to the nearest, ties to even, and keeps NaN and infinity.
#pragma once

#include "ocl/cpu/vector.h"
#include "ocl/view.h"

namespace ocl {
namespace {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class Element>
OCL_INLINE Halves load_bits(const Element* from) {
  static_assert(sizeof(Element) == sizeof(uint16_t));
  Halves bits;
  std::memcpy(&bits, from, sizeof bits);
  return bits;
}

OCL_INLINE Bits widen_bits(Halves halves) {
#if defined(OCL_TARGET_AVX512)
  return bit_cast<Bits>(_mm512_cvtepu16_epi32(bit_cast<__m256i>(halves)));  // GCC 12 makes two of it
#else
  return __builtin_convertvector(halves, Bits);
#endif
}

OCL_INLINE Floats load(const BFloat16* from) { return bit_cast<Floats>(widen_bits(load_bits(from)) << 16); }

OCL_INLINE Halves narrow_to_bfloat16(Floats value) {
#if defined(OCL_TARGET_AVX512_BF16)
  return bit_cast<Halves>(_mm512_cvtneps_pbh(bit_cast<__m512>(value)));  // makes zeros of denormals, as products do
#else
  const Bits bits = bit_cast<Bits>(value);
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Bits quiet = (bits >> 16) | 0x40;
  return __builtin_convertvector(value != value ? quiet : rounded, Halves);
#endif
}

OCL_INLINE void store(BFloat16* to, Floats value) {
  const Halves halves = narrow_to_bfloat16(value);
  std::memcpy(to, &halves, sizeof halves);
}

#if defined(OCL_TARGET_AVX512)
OCL_INLINE Floats widen(Halves halves) { return bit_cast<Floats>(_mm512_cvtph_ps(bit_cast<__m256i>(halves))); }
OCL_INLINE Halves narrow(Floats value) {
  return bit_cast<Halves>(_mm512_maskz_cvtps_ph(0xffff, bit_cast<__m512>(value), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(OCL_TARGET_AVX2)
OCL_INLINE Floats widen(Halves halves) { return bit_cast<Floats>(_mm256_cvtph_ps(bit_cast<__m128i>(halves))); }
OCL_INLINE Halves narrow(Floats value) {
  return bit_cast<Halves>(_mm256_cvtps_ph(bit_cast<__m256>(value), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#else
// float16 has 5 bits of exponent with bias 15 and 10 of mantissa: as a float, the bits stand for 2^-112 of the value.
OCL_INLINE Floats widen(Halves halves) {
  const Bits bits = __builtin_convertvector(halves, Bits);
  const Floats value = bit_cast<Floats>((bits & 0x7fff) << 13) * broadcast(5.192296858534828e33f);  // 2^112
  const Bits infinite = bit_cast<Bits>(value >= broadcast(65536.0f)) & 0x7f800000;
  return bit_cast<Floats>(bit_cast<Bits>(value) | infinite | ((bits & 0x8000) << 16));
}

OCL_INLINE Halves narrow(Floats value) {
  const Bits magnitude = bit_cast<Bits>(value) & 0x7fffffff;
  const Bits sign = (bit_cast<Bits>(value) >> 16) & 0x8000;
  const Floats size = bit_cast<Floats>(magnitude);
  const Bits normal = (magnitude + (0xc8000fff + ((magnitude >> 13) & 1))) >> 13;  // exponent - 112, half a unit - 1, ties to even
  const Bits subnormal = bit_cast<Bits>(size + broadcast(0.5f)) - 0x3f000000;      // adding 0.5 rounds to units of 2^-24
  const Bits large = bit_cast<Bits>(size == size) & 0x7c00;
  const Bits special = large | (bit_cast<Bits>(size != size) & 0x7e00);
  Bits result = size < broadcast(6.103515625e-5f) ? subnormal : normal;  // 2^-14
  result = size < broadcast(65536.0f) ? result : special;
  return __builtin_convertvector(result | sign, Halves);
}
#endif

OCL_INLINE Floats load(const Float16* from) { return widen(load_bits(from)); }

OCL_INLINE void store(Float16* to, Floats value) {
  const Halves halves = narrow(value);
  std::memcpy(to, &halves, sizeof halves);
}

// The first `count` lanes, zeros after them.
template <class Element>
OCL_INLINE Floats load_some(const Element* from, int64_t count) {
  alignas(OCL_VECTOR_BYTES) Element lanes[kLanes] = {};
  std::memcpy(lanes, from, static_cast<std::size_t>(count) * sizeof(Element));
  return load(lanes);
}

template <class Element>
OCL_INLINE void store_some(Element* to, Floats value, int64_t count) {
  alignas(OCL_VECTOR_BYTES) Element lanes[kLanes];
  store(lanes, value);
  std::memcpy(to, lanes, static_cast<std::size_t>(count) * sizeof(Element));
}

// Calls use(null pointer to the element type of `dtype`).
template <class Use>
OCL_INLINE void with_element(Dtype dtype, const Use& use) {
  switch (dtype) {
    case Dtype::float32: return use(static_cast<float*>(nullptr));
    case Dtype::bfloat16: return use(static_cast<BFloat16*>(nullptr));
    case Dtype::float16: return use(static_cast<Float16*>(nullptr));
  }
}

inline int64_t element_size(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

// Address of element (batch, head, row, 0); null where there is no data, as in an empty tensor.
inline void* address(const View& view, Dtype dtype, int64_t batch, int64_t head, int64_t row) {
  if (view.data == nullptr) return nullptr;
  return static_cast<char*>(view.data) + (batch * view.batch + head * view.head + row * view.row) * element_size(dtype);
}

// Asks for the cache lines of `size` elements of a row ahead of their use: the rows of other heads lie between those of one head,
// too far apart for the processor to foresee. The empty statement keeps GCC from taking a function that only prefetches for one
// without effect.
template <bool kForWriting>
OCL_INLINE void prefetch_row(Dtype dtype, const void* row, int64_t size) {
  const char* first = static_cast<const char*>(row);
  for (int64_t byte = 0; byte < size * element_size(dtype); byte += 64) __builtin_prefetch(first + byte, kForWriting);
  __asm__ volatile("");
}

// to[row][i] = factor * from[row][i] for i < size, 0 up to the next multiple of kLanes. Strides in elements. The last vector of a
// row overlaps the one before, where there is one: that is faster than counting lanes.
inline void load_rows(Dtype dtype, const void* from, int64_t from_row, int64_t rows, int64_t size, float factor, float* to,
                      int64_t to_row) {
  with_element(dtype, [&](auto* kind) {
    const auto* source = static_cast<decltype(kind)>(const_cast<void*>(from));
    const int64_t whole = size / kLanes * kLanes;
    const Floats factors = broadcast(factor);
    for (int64_t row = 0; row < rows; ++row, source += from_row, to += to_row) {
      for (int64_t i = 0; i < whole; i += kLanes) store(to + i, load(source + i) * factors);
      if (whole == size) continue;
      store(to + whole, whole > 0 ? Floats{} : load_some(source, size) * factors);
      if (whole > 0) store(to + size - kLanes, load(source + size - kLanes) * factors);
    }
  });
}

// to[row][i] = factor(row) * from[row][i] for i < size, rounded once.
template <class Factor>
inline void store_rows(Dtype dtype, const float* from, int64_t from_row, int64_t rows, int64_t size, const Factor& factor, void* to,
                       int64_t to_row) {
  with_element(dtype, [&](auto* kind) {
    auto* target = static_cast<decltype(kind)>(to);
    const int64_t whole = size / kLanes * kLanes;
    for (int64_t row = 0; row < rows; ++row, from += from_row, target += to_row) {
      const Floats factors = broadcast(factor(row));
      for (int64_t i = 0; i < whole; i += kLanes) store(target + i, load(from + i) * factors);
      if (whole == size) continue;
      const int64_t last = size - kLanes;
      last > 0 ? store(target + last, load(from + last) * factors) : store_some(target, load(from) * factors, size);
    }
  });
}

}  // namespace
}  // namespace ocl

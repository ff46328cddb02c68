// Opens a region that is compiled for one instruction set, whatever the flags of the file; target_end.h closes it.
//
//   #define OCL_TARGET_AVX2            // or _AVX512, _AVX512_BF16, _AMX, or none: the compiler's own target, vectors of 16 bytes
//   #include "ocl/cpu/target_begin.h"
//   #include "ocl/cpu/matmul.h"        // and other headers of kernels
//   #include "ocl/cpu/target_end.h"
//
// Headers of kernels stand between the two and keep everything in an unnamed namespace: the linker merges inline functions of
// one name from several files, and must not hand an AVX-512 body to a processor without it. For the same reason the standard
// headers come first, here, where no region is open.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <new>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "ocl/view.h"

#if defined(OCL_TARGET_AMX)
#define OCL_TARGET_AVX512_BF16  // each includes the ones before it
#endif
#if defined(OCL_TARGET_AVX512_BF16)
#define OCL_TARGET_AVX512
#endif

#if defined(OCL_TARGET_AVX512)
#define OCL_VECTOR_BYTES 64
#elif defined(OCL_TARGET_AVX2)
#define OCL_VECTOR_BYTES 32
#elif !defined(OCL_VECTOR_BYTES)  // tests define it to run the kernels of wide processors on narrow ones
#define OCL_VECTOR_BYTES 16
#endif

// Vectors wider than the registers are legal and slow; GCC warns that passing them by value has no stable ABI, which is of no
// concern to functions that are always inlined.
#if defined(__clang__)
#if defined(OCL_TARGET_AMX)
#pragma clang attribute push(__attribute__((target( \
    "avx2,fma,f16c,prfchw,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16"))), apply_to = function)
#elif defined(OCL_TARGET_AVX512_BF16)
#pragma clang attribute push(__attribute__((target( \
    "avx2,fma,f16c,prfchw,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))), apply_to = function)
#elif defined(OCL_TARGET_AVX512)
#pragma clang attribute push(__attribute__((target( \
    "avx2,fma,f16c,prfchw,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#elif defined(OCL_TARGET_AVX2)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,prfchw"))), apply_to = function)
#endif
#else
#pragma GCC diagnostic ignored "-Wpsabi"  // to the end of the file: GCC warns there
#if OCL_VECTOR_BYTES == 64
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in GCC's own headers (its bug 105593)
#endif
#pragma GCC push_options
#if defined(OCL_TARGET_AMX)
#pragma GCC target("avx2,fma,f16c,prfchw,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")
#elif defined(OCL_TARGET_AVX512_BF16)
#pragma GCC target("avx2,fma,f16c,prfchw,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#elif defined(OCL_TARGET_AVX512)
#pragma GCC target("avx2,fma,f16c,prfchw,avx512f,avx512bw,avx512dq,avx512vl")
#elif defined(OCL_TARGET_AVX2)
#pragma GCC target("avx2,fma,f16c,prfchw")
#endif
#endif

// The few GPU primitives that the kernels use, twice: PTX bodies here for nvcc, host bodies in host_simt.h that run the same kernel
// source on a CPU with one fibre per CUDA thread. A kernel written against this header is tested without a GPU.
//
// Fragments of mma_16x8x16 (lane = 4 * group + quad, both types, rows by columns; PTX ISA, "Matrix fragments for mma.m16n8k16"):
//   a[0] = A[group    ][2 quad, 2 quad + 1]    a[2] = the same, columns + 8      a[1], a[3] = the same, rows + 8
//   b0   = B[2 quad, 2 quad + 1][group]        b1   = the same, rows + 8         (k by n; two k of one n share a word)
//   c[0], c[1] = C[group][2 quad, 2 quad + 1]  c[2], c[3] = the same, rows + 8
// mma_16x8x8 takes a0, a1 as a[0], a[1] and b0. ldmatrix reads 8x8 matrices of 16-bit elements: lanes 8i .. 8i+7 pass the addresses of
// the rows of matrix i, and lane 4 * group + quad receives row `group`, columns 2 quad and 2 quad + 1 (with _trans: of the transpose).
#pragma once

#include <cstdint>

namespace ocl::simt {

// Storage of 16-bit floating point; arithmetic happens in float.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

struct alignas(8) Float2 {
  float x, y;
};
// 16 bytes, the widest access of one thread to memory.
struct alignas(16) Float4 {
  float x, y, z, w;
};
struct alignas(16) Uint4 {
  uint32_t x, y, z, w;
};

}  // namespace ocl::simt

#if defined(__CUDACC__)

#define OCL_KERNEL __global__
#define OCL_DEVICE __device__ __forceinline__
#define OCL_HOST_DEVICE __host__ __device__
#define OCL_LAUNCH_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#define OCL_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#define OCL_UNROLL _Pragma("unroll")
#define OCL_NO_UNROLL _Pragma("unroll 1")

namespace ocl::simt {

OCL_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
OCL_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
OCL_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
OCL_DEVICE int block_z() { return static_cast<int>(blockIdx.z); }
OCL_DEVICE int grid_x() { return static_cast<int>(gridDim.x); }

// The same number, of which the compiler knows nothing: what is computed from it inside a loop is not kept in registers across it.
OCL_DEVICE int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

OCL_DEVICE void sync_threads() { __syncthreads(); }
OCL_DEVICE void sync_warp() { __syncwarp(); }

OCL_DEVICE float shuffle(float value, int lane) { return __shfl_sync(~0u, value, lane); }
OCL_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(~0u, value, mask); }

OCL_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
OCL_DEVICE float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

OCL_DEVICE float to_float(float value) { return value; }
OCL_DEVICE float to_float(bfloat16 value) { return __uint_as_float(static_cast<uint32_t>(value.bits) << 16); }
OCL_DEVICE float to_float(float16 value) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(value.bits));
  return y;
}

// Two numbers rounded to T in one word, `low` at the lower address.
template <class T>
OCL_DEVICE uint32_t pack2(float low, float high);
template <>
OCL_DEVICE uint32_t pack2<bfloat16>(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
template <>
OCL_DEVICE uint32_t pack2<float16>(float low, float high) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

template <class T>
OCL_DEVICE T from_float(float value) {
  return T{static_cast<uint16_t>(pack2<T>(value, 0.0f))};
}
template <>
OCL_DEVICE float from_float<float>(float value) {
  return value;
}

OCL_DEVICE uint32_t shared_address(const void* shared) { return static_cast<uint32_t>(__cvta_generic_to_shared(shared)); }

template <class T>
OCL_DEVICE void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <class T>
OCL_DEVICE void mma_16x8x8(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0);

#define OCL_MMA(T, type)                                                                                                        \
  template <>                                                                                                                   \
  OCL_DEVICE void mma_16x8x16<T>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {                             \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                                                         \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                         \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                               \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                               \
  }                                                                                                                             \
  template <>                                                                                                                   \
  OCL_DEVICE void mma_16x8x8<T>(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {                                         \
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};" \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                               \
                 : "r"(a0), "r"(a1), "r"(b0));                                                                                  \
  }
OCL_MMA(bfloat16, "bf16")
OCL_MMA(float16, "f16")
#undef OCL_MMA

OCL_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared)));
}
OCL_DEVICE void ldmatrix_x2(uint32_t& r0, uint32_t& r1, const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(r0), "=r"(r1) : "r"(shared_address(shared)));
}
OCL_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared)));
}
OCL_DEVICE void ldmatrix_x2_trans(uint32_t& r0, uint32_t& r1, const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(r0), "=r"(r1) : "r"(shared_address(shared)));
}

// The transpose of an 8x8 matrix of 16-bit elements, held as ldmatrix leaves it.
OCL_DEVICE uint32_t transpose(uint32_t word) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(word));
  return transposed;
}

// 16 bytes from global to shared memory, both 16-byte aligned; zeros where not `valid` (then `global` is not read).
OCL_DEVICE void copy_async_16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}
OCL_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N of this thread's committed groups are still under way.
template <int N>
OCL_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

}  // namespace ocl::simt

#else
#include "ocl/cuda/host_simt.h"
#endif

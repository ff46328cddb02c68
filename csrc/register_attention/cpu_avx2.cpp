// Register attention for AVX2 with FMA and F16C.
#include "register_attention/cpu.h"

#if OCL_CPU_X86
#define OCL_TARGET_AVX2
#include "ocl/cpu/target_begin.h"
#include "register_attention/cpu_backward.h"
#include "register_attention/cpu_forward.h"
#include "register_attention/cpu_vectors.h"

namespace ocl {

void avx2::register_attention(const RegisterAttentionForward& work, const ParallelFor& parallel) {
  forward<VectorArithmetic>(work, parallel);
}
void avx2::register_attention(const RegisterAttentionBackward& work, const ParallelFor& parallel) {
  backward<VectorArithmetic>(work, parallel);
}

}  // namespace ocl

#include "ocl/cpu/target_end.h"
#endif

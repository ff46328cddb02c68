// Slot attention for AVX-512 (f, bw, dq, vl).
#include "slot_attention/cpu.h"

#if OCL_CPU_X86
#define OCL_TARGET_AVX512
#include "ocl/cpu/target_begin.h"
#include "slot_attention/cpu_backward.h"

namespace ocl {

void avx512::slot_attention(const SlotAttentionForward& work, const ParallelFor& parallel) { forward(work, parallel); }
void avx512::slot_attention(const SlotAttentionBackward& work, const ParallelFor& parallel) { backward(work, parallel); }

}  // namespace ocl

#include "ocl/cpu/target_end.h"
#endif

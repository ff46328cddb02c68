// Slot attention for AVX2 with FMA and F16C.
#include "slot_attention/cpu.h"

#if OCL_CPU_X86
#define OCL_TARGET_AVX2
#include "ocl/cpu/target_begin.h"
#include "slot_attention/cpu_backward.h"

namespace ocl {

void avx2::slot_attention(const SlotAttentionForward& work, const ParallelFor& parallel) { forward(work, parallel); }
void avx2::slot_attention(const SlotAttentionBackward& work, const ParallelFor& parallel) { backward(work, parallel); }

}  // namespace ocl

#include "ocl/cpu/target_end.h"
#endif

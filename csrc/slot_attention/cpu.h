// Slot attention on the CPU, once per instruction set; slot_attention_cpu (kernel.h) picks one. Each of them computes what kernel.h
// says. Calling one that the processor does not have is an illegal instruction.
#pragma once

#include "ocl/cpu/isa.h"
#include "slot_attention/kernel.h"

namespace ocl {

namespace portable {
void slot_attention(const SlotAttentionForward& work, const ParallelFor& parallel);
void slot_attention(const SlotAttentionBackward& work, const ParallelFor& parallel);
}  // namespace portable

#if OCL_CPU_X86
namespace avx2 {
void slot_attention(const SlotAttentionForward& work, const ParallelFor& parallel);
void slot_attention(const SlotAttentionBackward& work, const ParallelFor& parallel);
}  // namespace avx2

namespace avx512 {
void slot_attention(const SlotAttentionForward& work, const ParallelFor& parallel);
void slot_attention(const SlotAttentionBackward& work, const ParallelFor& parallel);
}  // namespace avx512
#endif

}  // namespace ocl

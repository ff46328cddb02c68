// Register attention on the CPU, once per instruction set; register_attention_cpu (kernel.h) picks one. Each of them computes
// what kernel.h says. Calling one that the processor does not have is an illegal instruction.
#pragma once

#include "ocl/cpu/isa.h"
#include "register_attention/kernel.h"

namespace ocl {

namespace portable {
void register_attention(const RegisterAttentionForward& work, const ParallelFor& parallel);
void register_attention(const RegisterAttentionBackward& work, const ParallelFor& parallel);
}  // namespace portable

#if OCL_CPU_X86
namespace avx2 {
void register_attention(const RegisterAttentionForward& work, const ParallelFor& parallel);
void register_attention(const RegisterAttentionBackward& work, const ParallelFor& parallel);
}  // namespace avx2

namespace avx512 {
void register_attention(const RegisterAttentionForward& work, const ParallelFor& parallel);
void register_attention(const RegisterAttentionBackward& work, const ParallelFor& parallel);
}  // namespace avx512

namespace avx512_bf16 {  // bfloat16 only
void register_attention(const RegisterAttentionForward& work, const ParallelFor& parallel);
void register_attention(const RegisterAttentionBackward& work, const ParallelFor& parallel);
}  // namespace avx512_bf16

namespace amx {  // bfloat16 only
void register_attention(const RegisterAttentionForward& work, const ParallelFor& parallel);
void register_attention(const RegisterAttentionBackward& work, const ParallelFor& parallel);
}  // namespace amx
#endif

}  // namespace ocl

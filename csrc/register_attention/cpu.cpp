// Register attention on the CPU: hands the work to the kernels of the instruction set at hand.
#include "register_attention/cpu.h"

namespace ocl {
namespace {

template <class Work>
void run(const Work& work, const ParallelFor& parallel) {
#if OCL_CPU_X86
  switch (cpu_isa()) {
    case CpuIsa::amx:
      if (work.in.dtype == Dtype::bfloat16) return amx::register_attention(work, parallel);
      return avx512::register_attention(work, parallel);
    case CpuIsa::avx512_bf16:
      if (work.in.dtype == Dtype::bfloat16) return avx512_bf16::register_attention(work, parallel);
      return avx512::register_attention(work, parallel);
    case CpuIsa::avx512: return avx512::register_attention(work, parallel);
    case CpuIsa::avx2: return avx2::register_attention(work, parallel);
    case CpuIsa::portable: break;
  }
#endif
  portable::register_attention(work, parallel);
}

}  // namespace

void register_attention_cpu(const RegisterAttentionForward& work, const ParallelFor& parallel) { run(work, parallel); }
void register_attention_cpu(const RegisterAttentionBackward& work, const ParallelFor& parallel) { run(work, parallel); }

}  // namespace ocl

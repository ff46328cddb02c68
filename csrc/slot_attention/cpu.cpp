// Slot attention on the CPU: hands the work to the kernels of the instruction set at hand. All dtypes are summed in fp32.
#include "slot_attention/cpu.h"

namespace ocl {
namespace {

template <class Work>
void run(const Work& work, const ParallelFor& parallel) {
#if OCL_CPU_X86
  switch (cpu_isa()) {
    case CpuIsa::amx:  // no products of its own: few slots leave most of a tile empty
    case CpuIsa::avx512_bf16:
    case CpuIsa::avx512: return avx512::slot_attention(work, parallel);
    case CpuIsa::avx2: return avx2::slot_attention(work, parallel);
    case CpuIsa::portable: break;
  }
#endif
  portable::slot_attention(work, parallel);
}

}  // namespace

void slot_attention_cpu(const SlotAttentionForward& work, const ParallelFor& parallel) { run(work, parallel); }
void slot_attention_cpu(const SlotAttentionBackward& work, const ParallelFor& parallel) { run(work, parallel); }

}  // namespace ocl

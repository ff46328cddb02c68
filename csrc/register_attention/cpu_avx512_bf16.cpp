// Register attention in bfloat16 by the vectors of pairs of AVX-512 BF16.
#include "register_attention/cpu.h"

#if OCL_CPU_X86
#define OCL_TARGET_AVX512_BF16
#include "ocl/cpu/target_begin.h"
#include "register_attention/cpu_backward.h"
#include "register_attention/cpu_forward.h"
#include "register_attention/cpu_tiles.h"

namespace ocl {

void avx512_bf16::register_attention(const RegisterAttentionForward& work, const ParallelFor& parallel) {
  forward<TileArithmetic<VectorsOfPairs>>(work, parallel);
}
void avx512_bf16::register_attention(const RegisterAttentionBackward& work, const ParallelFor& parallel) {
  backward<TileArithmetic<VectorsOfPairs>>(work, parallel);
}

}  // namespace ocl

#include "ocl/cpu/target_end.h"
#endif

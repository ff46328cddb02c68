// Register attention in bfloat16 on AMX tiles, with AVX-512 around them.
#include "register_attention/cpu.h"

#if OCL_CPU_X86
#define OCL_TARGET_AMX
#include "ocl/cpu/target_begin.h"
#include "register_attention/cpu_backward.h"
#include "register_attention/cpu_forward.h"
#include "register_attention/cpu_tiles.h"

namespace ocl {

void amx::register_attention(const RegisterAttentionForward& work, const ParallelFor& parallel) {
  forward<TileArithmetic<HardwareTiles>>(work, parallel);
}
void amx::register_attention(const RegisterAttentionBackward& work, const ParallelFor& parallel) {
  backward<TileArithmetic<HardwareTiles>>(work, parallel);
}

}  // namespace ocl

#include "ocl/cpu/target_end.h"
#endif

// Register attention for the instruction set that the compiler targets by itself, whatever the processor.
#include "register_attention/cpu.h"

#include "ocl/cpu/target_begin.h"
#include "register_attention/cpu_backward.h"
#include "register_attention/cpu_forward.h"
#include "register_attention/cpu_vectors.h"

namespace ocl {

void portable::register_attention(const RegisterAttentionForward& work, const ParallelFor& parallel) {
  forward<VectorArithmetic>(work, parallel);
}
void portable::register_attention(const RegisterAttentionBackward& work, const ParallelFor& parallel) {
  backward<VectorArithmetic>(work, parallel);
}

}  // namespace ocl

#include "ocl/cpu/target_end.h"

// Register attention for the instruction set that the compiler targets by itself, whatever the processor.
#include "register_attention/cpu.h"

#include "ocl/cpu/target_begin.h"
#include "register_attention/cpu_backward.h"

namespace ocl {

void portable::register_attention(const RegisterAttentionForward& work, const ParallelFor& parallel) { forward(work, parallel); }
void portable::register_attention(const RegisterAttentionBackward& work, const ParallelFor& parallel) { backward(work, parallel); }

}  // namespace ocl

#include "ocl/cpu/target_end.h"
